"""`add_weighted_adapter` on LoRA. The random types (dare) have no result that another library could reproduce.

Results of the types that go through a singular value decomposition are compared by what they do: the signs of the
factors are free. The others are compared tensor by tensor as well.
"""

from oracle.spec import (Case, active, base_weights, delete, dora, fails, forward, load, lora, merge, mixed, scale, state_dict,
                         unmerge, weighted)

from .common import EMB_CONV1D, MLP, blocks, conv2d, gpt2

PAIR = {"first": lora("lin0", "lin1"), "second": lora("lin0", "lin1", lora_alpha=3)}
WIDE = {"first": lora("lin0", r=6), "second": lora("lin0", r=6, lora_alpha=3)}
NAMES = ["first", "second"]
LOAD = [load("first"), load("second")]

EXACT = ("linear", "cat", "ties", "magnitude_prune")
PRUNING = ("ties", "magnitude_prune", "ties_svd", "magnitude_prune_svd")
SVD = ("svd", "ties_svd", "magnitude_prune_svd")


def combination(kind: str, name: str = "sum", adapters: list[str] = NAMES, weights: tuple[float, ...] = (0.8, 0.5),
                **options) -> list:
    """Combine, look at the result, activate and use it."""
    if kind in PRUNING:
        options = {"density": 0.6} | options
    return [weighted(name, adapters, list(weights), kind, **options),
            *([state_dict(name)] if kind in EXACT else []), active(name), forward()]


def combinations(*kinds: str, **options) -> list:
    return [step for kind in kinds for step in combination(kind, name=f"by_{kind}", **options)]


def merged() -> list:
    return [merge(), forward(), base_weights(), unmerge(), active("first"), forward()]


CASES = [
    *(Case(f"weighted_mlp_{kind}", MLP, PAIR,
           [*LOAD, *combination(kind), *merged(), *combination(kind, "negative", weights=(1.0, -0.7)),
            *combination(kind, "one", ["second"], (2.0,)), *(step for density in densities for step in combination(
                kind, f"density_{int(10 * density)}", density=density))])
      for kind, densities in (("linear", ()), ("cat", ()), ("ties", (0.2, 1.0)), ("magnitude_prune", (0.2, 1.0)))),
    Case("weighted_mlp_svd", MLP, {"first": lora("lin0", r=2), "second": lora("lin0", r=5)},
         [*LOAD, *combination("svd"), *merged(), *combination("svd", "negative", weights=(1.0, -0.7)),
          *combination("svd", "rank_3", svd_rank=3), *combination("svd", "full", svd_rank=10), active(*NAMES),
          forward()]),
    *(Case(f"weighted_mlp_{kind}", MLP, WIDE,
           [*LOAD, *combination(kind), *merged(), *combination(kind, "negative", weights=(1.0, -0.7)),
            *combination(kind, "small", svd_rank=2), *(step for density in (0.2, 1.0) for step in combination(
                kind, f"density_{int(10 * density)}", density=density))])
      for kind in ("ties_svd", "magnitude_prune_svd")),
    Case("weighted_mlp_majority_signs", MLP, {
        name: lora("lin0", lora_alpha=alpha) for name, alpha in (("first", 8), ("second", 5), ("third", 3))},
         [*LOAD, load("third"), *(step for kind in ("ties", "ties_svd") for method in ("total", "frequency")
                                  for step in combination(kind, f"{kind}_{method}", ["first", "second", "third"],
                                                          (0.6, 0.9, -0.4), density=0.7,
                                                          majority_sign_method=method))]),
    Case("weighted_mlp_three", MLP,
         {"first": lora("lin0"), "second": lora("lin1"), "third": lora("lin0", "lin1"), "fourth": lora("lin0", r=2)},
         [*LOAD, load("third"), load("fourth"),
          *combination("linear", adapters=["third", "first", "second"], weights=(1.0, -0.5, 0.25)),
          *combination("cat", "joined", ["third", "first", "second"], (1.0, -0.5, 0.25)),
          *combination("cat", "of_other_ranks", ["fourth", "third", "second"], (0.5, -1.0, 2.0)), merge(), forward(),
          base_weights(), unmerge(), delete("first"), forward()]),
    Case("weighted_mlp_scaled", MLP, PAIR,
         [*LOAD, scale("first", 0.5), *combination("cat"), *combination("linear", "lin"), scale("lin", 2.0),
          forward()]),
    Case("weighted_mlp_rslora_and_alpha_patterns", MLP,
         {"first": lora("lin0", "lin1", alpha_pattern={"lin1": 2}),
          "second": lora("lin0", "lin1", use_rslora=True, lora_alpha=-3)},
         [*LOAD, *combinations("linear", "cat", "ties"),
          # If the first adapter uses rsLoRA, the sum is too large by the square root of the rank, and PEFT says nothing.
          fails(weighted("rs", ["second", "first"], [0.5, 0.5], "cat"), "second", lenient=True)]),
    Case("weighted_mlp_dora", MLP, {"first": dora("lin0", "lin1"), "second": dora("lin0", "lin1")},
         [*LOAD, *combinations("linear", "cat")]),
    Case("weighted_blocks", blocks(),
         {"first": lora("q_proj", "up_proj"), "second": lora("q_proj", "v_proj", modules_to_save=["lm_head"])},
         [*LOAD, *combinations(*EXACT)]),
    Case("weighted_blocks_svd", blocks(),
         {"first": lora("q_proj", "embed"), "second": lora("embed", "v_proj", lora_alpha=2)},
         [*LOAD, *combinations(*SVD)]),
    Case("weighted_emb_conv1d", EMB_CONV1D,
         {"first": lora("conv1d", "emb"), "second": lora("conv1d", "emb", lora_alpha=2)},
         [*LOAD, *combinations(*EXACT), mixed("by_cat", "first", "__base__", "by_ties")]),
    Case("weighted_conv2d", conv2d(), {"first": lora("conv2d", r=2), "second": lora("conv2d", r=2, lora_alpha=1)},
         [*LOAD, *combinations(*EXACT, *SVD)]),
    Case("weighted_conv2d_1x1_svd", conv2d(cin=5, k=1, h=4, w=4),
         {"first": lora("conv2d"), "second": lora("conv2d", r=2)}, [*LOAD, *combinations("svd")]),
    Case("weighted_gpt2", gpt2(), {"first": lora("c_attn"), "second": lora("c_attn", "c_fc")},
         [*LOAD, *combinations("linear", "svd")]),
]
