"""Cases in half precision: the kinds that the format page's own cases lack."""

from oracle.half import Half
from oracle.spec import (Adapter, Case, Model, Step, active, adalora, base_weights, dora, fails, forward, grads, ia3, load, loha,
                         lokr, lora, merge, mixed, scale, state_dict, train, unmerge, weighted)

from .common import EMB_CONV1D, bert, blocks, conv2d, gpt2, llama

MLP = Model("mlp", {"in": 24, "hidden": 32, "out": 16, "bias": True}, batch=6)
PAIR = [load("red"), load("green")]


def one(name: str, model: Model, adapter: Adapter, *steps: Step, still: tuple[str, ...] = (), salt: int = 0,
        **half: object) -> Half:
    """An adapter that is read, trained and merged."""
    tour = [load("default"), forward(), state_dict("default"), grads(), *steps, merge(), forward(), base_weights(),
            unmerge(), forward(), state_dict("default")]
    return Half(Case(name, model, {"default": adapter}, tour, still=still, salt=salt), **half)


def several(name: str, model: Model, adapters: dict[str, Adapter], *steps: Step, **half: object) -> Half:
    return Half(Case(name, model, adapters, [*PAIR, *steps]), **half)


KEPT = {"autocast": False}
BOTH = {"red": lora("lin0", "lin1", r=4, lora_alpha=8), "green": lora("lin0", "lin1", r=4, lora_alpha=6)}

CASES = [
    one("dora_mlp_kept_f16", MLP, dora("lin0", "lin1", r=4), dtype="f16", **KEPT),
    one("dora_conv2d_bf16", conv2d(cin=4, cout=6, h=6, w=5, padding=1), dora("conv2d", r=2)),
    one("adalora_mlp_kept_bf16", MLP, adalora("lin0", "lin1", tinit=10, tfinal=10, total_step=40), train("sgd", 0.05, 3),
        **KEPT),
    one("ia3_blocks_kept_f16", blocks(1), ia3("k_proj", "v_proj", "down_proj", feedforward=["down_proj"]), dtype="f16",
        **KEPT),
    one("loha_conv2d_kept_bf16", conv2d(cin=4, cout=6, h=6, w=5, padding=1),
        loha("conv2d", "lin0"), from_float32=True, **KEPT),
    one("lokr_mlp_kept_f16", MLP, lokr("lin0", "lin1", r=4), train("sgd", 0.05, 3), dtype="f16", **KEPT),
    one("lora_emb_conv1d_kept_bf16", EMB_CONV1D, lora("emb", "conv1d", "lin0", r=2), **KEPT),
    one("lora_mlp_bias_of_b_kept_bf16", MLP, lora("lin0", "lin1", lora_bias=True, bias="all"), train("sgd", 0.05, 3),
        **KEPT),
    one("lora_gpt2_biases_bf16", gpt2(), lora("c_attn", "c_proj", bias="all"), still=("c_attn.base_layer.bias",)),
    one("lora_bert_saved_norm_and_embedding_f16", bert(),
        lora("query", modules_to_save=["word_embeddings", "output.LayerNorm"]), dtype="f16"),
    one("lora_conv2d_saved_bf16", conv2d(cin=4, cout=6, h=6, w=5, padding=1), lora("lin0", modules_to_save=["conv2d"]),
        train("sgd", 0.02, 3)),
    Half(Case("lora_llama_tied_tokens_bf16", llama(tied=True),
              {"default": lora("q_proj", trainable_token_indices=[1, 3, 5, 8])},
              [load("default"), forward(), state_dict("default"), grads(), train("adamw", 0.01, 4), forward()])),
    several("pair_mlp_f16", MLP, BOTH, active("red", "green"), forward(), scale("green", 0.5), forward(),
            merge(safe=True), forward(), base_weights(), unmerge(), base_weights(), dtype="f16"),
    several("pair_mlp_dora_lora_bf16", MLP, {"red": dora("lin0", r=4), "green": lora("lin0", "lin1")},
            active("red", "green"), forward(), merge(), forward(), base_weights()),
    several("mixed_mlp_kept_f16", MLP, BOTH, mixed("red", "green", "__base__", "green", "red", "red"), forward(),
            dtype="f16", **KEPT),
    several("mixed_blocks_bf16", blocks(1), {"red": lora("embed", "q_proj", "lm_head"),
                                             "green": lora("q_proj", "down_proj")},
            mixed("green", "__base__", "red")),
    several("weighted_mlp_ties_svd_f16", MLP, BOTH,
            weighted("ties", ["red", "green"], [0.7, 1.2], "ties", density=0.6, majority_sign_method="total"),
            active("ties"), forward(), grads(), state_dict("ties"),
            weighted("svd", ["red", "green"], [1.0, -0.5], "svd", svd_rank=3), active("svd"), forward(), merge(),
            base_weights(), dtype="f16"),
    several("weighted_mlp_linear_kept_bf16", MLP, BOTH,
            weighted("sum", ["red", "green"], [0.6, 0.9], "linear"), active("sum"), forward(), grads(),
            train("sgd", 0.05, 3), forward(), state_dict("sum"), **KEPT),
    Half(Case("fails_safe_merge_f16", MLP, {"red": lora("lin0", "lin1", lora_alpha=8e7)},
              [load("red"), fails(merge(safe=True), "red", "lin"), base_weights()], inert=True), dtype="f16"),
]
