"""LoKr: the Kronecker product of two matrices, either of them whole or a product of low rank."""

from oracle.adapters import change_tensor, edit_config, fresh
from oracle.spec import Adapter, Case, Model, forward, load, lokr, merge, state_dict, train

from .common import CONV1D, MLP, bert, blocks, conv2d, parade, parade_case, tour
from .delta import ADAMW, GENTLE_ADAMW, GENTLE_SGD, SGD, shared_cases
from .fails_files import bad, refused

#: Sizes with many divisors, and prime sizes.
DIVISIBLE = Model("mlp", {"in": 12, "hidden": 36, "out": 10, "bias": True}, batch=3)
PRIME = Model("mlp", {"in": 7, "hidden": 13, "out": 3, "bias": False}, batch=3)


def factors(*values: int, **config) -> dict[str, Adapter]:
    return {f"factor_{value}": lokr("lin0", "lin1", decompose_factor=value, **config) for value in values}


def effective(*targets: str, **config) -> Adapter:
    return lokr(*targets, use_effective_conv2d=True, **config)


CASES = [
    *shared_cases("lokr", lokr, "lokr_w1"),
    parade_case("lokr_mlp_factors", DIVISIBLE, factors(1, 2, 3, 4, 5), gradients=True),
    parade_case("lokr_mlp_factors_that_do_not_divide", DIVISIBLE, factors(7, 8, 11, 36, 100, alpha=4), gradients=True),
    parade_case("lokr_mlp_factors_both", DIVISIBLE, factors(-1, 6, 10, r=1, decompose_both=True), gradients=True,
                merged=True),
    parade_case("lokr_mlp_primes", PRIME, factors(-1, 3, 7, 13, r=1), gradients=True, merged=True),
    Case("lokr_mlp_decompose_both", DIVISIBLE, {"first": lokr("lin0", "lin1", r=1, decompose_both=True)},
         tour(SGD, ADAMW)),
    parade_case("lokr_mlp_whole_or_product", MLP, {
        "by_pattern": lokr("lin0", "lin1", decompose_both=True, rank_pattern={"lin0": 1, "lin1": 4}),
        "at_the_half": lokr("lin0", "lin1", decompose_factor=4, r=5),
        "below_the_half": lokr("lin0", "lin1", decompose_factor=1, r=9, decompose_both=True),
    }, gradients=True),
    Case("lokr_blocks_decompose_both", blocks(),
         {"first": lokr("q_proj", "down_proj", "lm_head", r=1, alpha=2, decompose_both=True, decompose_factor=4)},
         tour(GENTLE_SGD, GENTLE_ADAMW)),
    Case("lokr_bert_decompose_both", bert(),
         {"first": lokr("query", "dense", r=1, alpha=1, decompose_both=True, decompose_factor=8)},
         tour(GENTLE_ADAMW, weights=False)),
    Case("lokr_conv1d_effective", CONV1D, {"first": effective("conv1d", "lin0", decompose_both=True)},
         tour(SGD, ADAMW)),
    Case("lokr_conv2d_effective", conv2d(cin=4, cout=6), {"first": effective("conv2d", r=1, alpha=2)},
         tour(GENTLE_SGD, GENTLE_ADAMW)),
    Case("lokr_conv2d_effective_both", conv2d(cin=6, cout=12, stride=2, padding=1),
         {"first": effective("conv2d", decompose_factor=1, alpha=4),
          "second": effective("conv2d", "lin0", r=1, alpha=2, decompose_factor=6, decompose_both=True)},
         [*tour(GENTLE_ADAMW), *parade(["second"], gradients=True, merged=True)]),
    Case("lokr_conv2d_whole", conv2d(cin=4, cout=6, stride=2), {"first": lokr("conv2d", r=3, alpha=4)},
         tour(GENTLE_SGD, GENTLE_ADAMW)),
    parade_case("lokr_conv2d_factors", conv2d(cin=6, cout=9, k=2), {
        "factor_2": lokr("conv2d", r=1, decompose_factor=2), "factor_4": effective("conv2d", decompose_factor=4),
        "factor_6": effective("conv2d", r=1, decompose_factor=6, decompose_both=True),
        "factor_9": lokr("conv2d", r=1, decompose_factor=9, decompose_both=True),
    }, gradients=True),
    parade_case("lokr_conv2d_groups_effective", conv2d(cin=4, cout=6, groups=2), {
        "first": effective("conv2d", r=1, alpha=2), "second": effective("conv2d", r=1, decompose_factor=1)},
        gradients=True, merged=True),
    Case("lokr_conv2d_1x1", conv2d(cin=4, cout=6, k=1), {
        "whole": effective("conv2d", r=4, alpha=4), "product": effective("conv2d", r=1, alpha=2)},
        parade(["whole", "product"], gradients=True, merged=True)),
    Case("lokr_lycoris_fresh_blocks", blocks(),
         {"first": lokr("v_proj", "up_proj", init_weights="lycoris", recipe=fresh)},
         [load("first"), train("adamw", 0.02, 6), state_dict("first"), forward(), merge(), forward()]),
    parade_case("lokr_lycoris_conv2d", conv2d(cin=4, cout=6), {
        "product": lokr("conv2d", "lin0", r=1, init_weights="lycoris", recipe=fresh),
        "effective": effective("conv2d", r=1, init_weights="lycoris", recipe=fresh),
        "dropout": lokr("conv2d", init_weights="lycoris", recipe=fresh, rank_dropout=0.5, rank_dropout_scale=True),
    }, inert=True),
    refused("lokr_forms", DIVISIBLE, lokr("lin0", "lin1"),
            bad("other_factor", lokr("lin0", "lin1", edits=(edit_config(decompose_factor=4),)), "lin0"),
            bad("rank_for_a_whole", lokr("lin0", "lin1", edits=(edit_config(r=30),)), "lin0", lenient=True),
            bad("rank_for_a_product", lokr("lin0", "lin1", r=30, edits=(edit_config(r=1),)), "lin0", lenient=True),
            bad("both", lokr("lin0", "lin1", r=1, edits=(edit_config(decompose_both=True),)), "lin0", lenient=True),
            bad("other_rank", lokr("lin0", "lin1", r=2, edits=(edit_config(r=1),)), "lin0"),
            bad("transposed", lokr("lin1", edits=(change_tensor("lokr_w2_a", lambda values: values.T),)), "lin1",
                "lokr_w2_a")),
]
