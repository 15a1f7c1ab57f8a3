"""`ensure_weight_tying`: one adapter, or one full copy, for an embedding and the output layer that has its weight.

PEFT's factors of the two layers are separate parameters with one memory. SGD on both is SGD on the sum of their gradients;
the gradients themselves, and AdamW's moments, are PEFT's own.
"""

from oracle.spec import Case, active, delete, disable, enable, forward, load, lora, scale, state_dict, train

from .common import llama

TIED, UNTIED = llama(tied=True), llama()
SGD = train("sgd", 0.05, 3)


def one(name: str, *targets: str, model=TIED, steps: list = (), salt: int = 0, **config) -> Case:
    adapter = lora(*targets, ensure_weight_tying=True, **config)
    return Case(f"tying_{name}", model, {"first": adapter},
                [load("first"), forward(), state_dict("first"), disable(), forward(), enable(), SGD, forward(),
                 state_dict("first"), *steps], salt=salt)


CASES = [
    one("embedding", "embed_tokens", "q_proj"),
    one("head", "lm_head", "q_proj", steps=[scale("first", 0.5), forward()]),
    one("both_with_patterns", "lm_head", "embed_tokens", rank_pattern={"embed_tokens": 3}, lora_alpha=5,
        alpha_pattern={"lm_head": 2, "embed_tokens": 3}),
    one("pattern", target_modules=r"(.*\.)?(lm_head|v_proj)", exclude_modules=["k_proj"], salt=2),
    one("copy_of_the_head", "q_proj", modules_to_save=["lm_head"]),
    one("copy_of_the_embedding", "q_proj", modules_to_save=["embed_tokens", "norm"]),
    one("tokens", "q_proj", trainable_token_indices={"embed_tokens": [1, 2, 7], "lm_head": [1, 2, 7]}),
    one("untied_model", "embed_tokens", "q_proj", model=UNTIED),
    one("nothing_named", "q_proj"),
    Case("tying_among_others", TIED, {"first": lora("lm_head", "q_proj", ensure_weight_tying=True, r=2),
                                      "second": lora("q_proj", "v_proj")},
         [load("first"), load("second"), forward(), active("second"), forward(), active("first", "second"), forward(),
          delete("second"), forward(), state_dict("first")]),
]
