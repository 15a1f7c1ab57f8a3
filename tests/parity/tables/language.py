"""LoRA on the transformers models."""

from oracle.spec import Case, active, forward, grads, load, lora, state_dict, train

from .common import bert, gpt2, llama, tour

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LONG = {"masked": True, "length": 7, "batch": 3}
LOOK = [load("first"), forward(), grads(), state_dict("first")]

LAYERS = [
    ("bert_attention_and_dense", bert(), lora("query", "value", "dense", r=2),
     tour(train("sgd", 0.2, 4), train("adamw", 0.01, 4, weight_decay=0.1))),
    ("bert_embeddings", bert(), lora("word_embeddings", "position_embeddings", "token_type_embeddings", r=2),
     tour(train("sgd", 0.3, 4), weights=False)),
    ("bert_no_mask", bert(masked=False), lora("query", "key", task_type="FEATURE_EXTRACTION"), LOOK),
    ("llama_seven", llama(), lora(*SEVEN, r=2), tour(train("sgd", 0.1, 3), train("adamw", 0.01, 3))),
    ("llama_embed_tokens_and_head", llama(), lora("embed_tokens", "lm_head", r=2), tour(weights=False)),
    ("llama_masked", llama(**LONG), lora("q_proj", "k_proj", "v_proj", task_type="CAUSAL_LM"), LOOK),
    ("gpt2_c", gpt2(inner=None), lora("c_attn", "c_proj", "c_fc", r=2),
     tour(train("sgd", 0.005, 3), train("adamw", 0.01, 3))),
    ("gpt2_masked", gpt2(**LONG), lora("c_attn", "wpe", "wte"), LOOK),
]

CASES = [
    *(Case(f"language_{name}", model, {"first": adapter}, steps) for name, model, adapter, steps in LAYERS),
    # The padding row of an embedding gets no gradient, but its adapter still adds to the output.
    Case("language_bert_padding_token", bert(first_token=0, batch=4, length=16), {"first": lora("word_embeddings")},
         [load("first"), forward(), grads(), train("sgd", 0.3, 2)], salt=1),
    # With tied weights, the adapter of the embedding is not the head's; users who merge have to untie first.
    Case("language_llama_tied", llama(tied=True),
         {"first": lora("q_proj", "o_proj"), "second": lora("embed_tokens")},
         [*tour(weights=False), load("second"), active("second"), forward(), grads()]),
]
