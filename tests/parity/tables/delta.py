"""The cases that LoHa and LoKr share: both form a whole weight from small tensors and add it to the layer's own."""

from __future__ import annotations

import math
from collections.abc import Callable

from oracle.adapters import (WEIGHTS, change_tensor, drop_tensor, edit_config, fresh, keep_config, rename_tensor,
                             truncate)
from oracle.spec import (Adapter, Case, active, base_weights, delete, disable, enable, fails, forward, grads, load,
                         merge, scale, state_dict, train, unmerge, weighted)

from .common import CONV1D, EMB_CONV1D, MLP, MLP_PLAIN, bert, blocks, conv2d, gpt2, llama, parade, parade_case, tour
from .fails import broken, seen
from .fails_files import bad, refused

Method = Callable[..., Adapter]

SGD, ADAMW = train("sgd", 0.02, 3, weight_decay=0.1), train("adamw", 0.01, 3, weight_decay=0.1)
GENTLE_SGD, GENTLE_ADAMW = train("sgd", 0.02, 5), train("adamw", 0.004, 3)


def shared_cases(name: str, method: Method, tensor: str) -> list[Case]:
    """`tensor` is the ending of a matrix that every layer has."""
    return [*layers(name, method), *operations(name, method), *options(name, method), *selection(name, method),
            *failures(name, method, tensor)]


def layers(name: str, method: Method) -> list[Case]:
    linears = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head")
    tours = [
        ("mlp", MLP, method("lin0", "lin1"), SGD, ADAMW),
        ("blocks", blocks(), method(*linears, alpha=3), GENTLE_SGD, GENTLE_ADAMW),
        ("emb_conv1d", EMB_CONV1D, method("lin0"), SGD, ADAMW),
        ("conv1d", CONV1D, method("conv1d", "lin0"), SGD, ADAMW),
        ("conv2d", conv2d(cin=4, cout=6, padding=1, h=5, w=6), method("conv2d", "lin0", r=1, alpha=2), GENTLE_SGD,
         GENTLE_ADAMW),
        ("conv2d_1x1_stride", conv2d(cin=6, k=1, stride=2, bias=False), method("conv2d", use_effective_conv2d=True),
         GENTLE_SGD, GENTLE_ADAMW),
        ("conv2d_groups", conv2d(cin=4, cout=6, groups=2), method("conv2d", r=1, alpha=3), GENTLE_SGD, GENTLE_ADAMW),
        ("bert", bert(), method("query", "value", "dense", alpha=3), GENTLE_SGD, GENTLE_ADAMW),
    ]
    geometry = conv2d(cin=4, cout=6, k=3, stride=2, padding=2, dilation=2, bias=False, h=9, w=7)
    return [
        *(Case(f"{name}_{case}", model, {"first": adapter}, tour(*trainings))
          for case, model, adapter, *trainings in tours),
        parade_case(f"{name}_conv2d_stride_padding_dilation", geometry, {
            "plain": method("conv2d", r=1, alpha=3), "effective": method("conv2d", r=1, use_effective_conv2d=True),
            "effective_r_2": method("conv2d", use_effective_conv2d=True)}, merged=True),
        Case(f"{name}_llama_defaults", llama(), {"first": method(alpha=2), "second": method("o_proj", "gate_proj")},
             [*tour(GENTLE_ADAMW, weights=False), load("second"), active("second", "first"), forward(), merge(),
              forward(), unmerge(), active("second"), forward()]),
        Case(f"{name}_gpt2_head", gpt2(), {"first": method("lm_head", alpha=2)},
             [load("first"), forward(), grads(), GENTLE_ADAMW, forward(), state_dict("first"), disable(), forward()]),
    ]


def operations(name: str, method: Method) -> list[Case]:
    both = {"first": method("lin0", "lin1", alpha=4), "second": method("lin0", "lin1", r=1, alpha=3)}
    overlap = {"first": method("lin0", "lin1"), "second": method("lin1"), "third": method("lin0", r=3)}
    convolutions = {"plain": method("conv2d", r=1, alpha=2),
                    "effective": method("conv2d", "lin0", r=1, alpha=3, use_effective_conv2d=True)}
    return [
        Case(f"{name}_mlp_merge_and_disable", MLP, {"first": method("lin0", "lin1")},
             [load("first"), forward(), merge(safe=True), forward(), base_weights(), unmerge(), forward(),
              base_weights(), merge(), merge(), forward(), disable(), forward(), enable(), forward(), unmerge(),
              forward(), base_weights(), disable(), merge(), forward(), enable(), forward(), unmerge(), forward(),
              base_weights()]),
        Case(f"{name}_mlp_two_adapters", MLP, both,
             [load("first"), load("second"), forward(), active("second"), forward(), grads(),
              active("first", "second"), forward(), active("second", "first"), forward(), merge(), forward(),
              base_weights(), unmerge(), base_weights(), active("first"), merge("second"), forward(), base_weights(),
              merge("first"), forward(), base_weights(), unmerge(), active(), forward(), state_dict("second")]),
        Case(f"{name}_mlp_three_orders", MLP, overlap,
             [load("third"), load("first"), load("second"), forward(), active("first", "second", "third"), forward(),
              active("third", "first"), forward(), active("second", "third"), forward(), merge(), forward(),
              base_weights(), active("second"), base_weights(), forward(), grads()]),
        Case(f"{name}_mlp_scale", MLP, both,
             [load("first"), forward(), scale("first", 2.0), forward(), scale("first", -0.25), forward(), grads(),
              merge(), forward(), base_weights(), unmerge(), base_weights(), state_dict("first"), load("second"),
              active("first", "second"), forward(), scale("second", 3.0), forward(), active("first"), forward()]),
        Case(f"{name}_mlp_delete", MLP, both,
             [load("first"), load("second"), delete("second"), forward(), merge(), forward(), unmerge(),
              load("second"), active("first", "second"), forward(), delete("first"), forward(), state_dict("second"),
              load("first"), forward(), active("first", "second"), forward(), delete("second"), delete("first"),
              forward(), base_weights()]),
        Case(f"{name}_conv2d_two_adapters", conv2d(cin=4, cout=6, padding=1, h=5, w=5), convolutions,
             [load("plain"), load("effective"), forward(), grads(), active("effective"), forward(),
              active("effective", "plain"), forward(), merge(), forward(), base_weights(), unmerge(), base_weights(),
              scale("plain", -1.5), forward(), delete("effective"), forward(), state_dict("plain")]),
        Case(f"{name}_blocks_sequence", blocks(), {
            "low": method("q_proj", "down_proj", alpha=4), "high": method("q_proj", "up_proj", r=4, alpha=6),
            "head": method("lm_head", "v_proj", r=1, alpha=2)},
             [load("low"), forward(), load("high"), active("high"), GENTLE_ADAMW, forward(), merge(), forward(),
              load("head"), active("head", "low"), forward(), merge("low"), forward(), unmerge(), scale("head", 0.5),
              forward(), delete("high"), disable(), forward(), enable(), forward(), merge(safe=True), forward(),
              base_weights(), unmerge(), active("low"), GENTLE_SGD, forward(), state_dict("low"), base_weights()]),
    ]


def options(name: str, method: Method) -> list[Case]:
    def edited(**changes) -> Adapter:
        return method("lin0", "lin1", edits=(edit_config(**changes),))

    saving = {"first": method("lin0", modules_to_save=["lin1"]),
              "second": method("lin0", r=1, alpha=3, modules_to_save=["lin1"])}
    return [
        parade_case(f"{name}_mlp_ranks_and_alphas", MLP, {
            "r_1": method("lin0", "lin1", r=1, alpha=-4),
            "r_above_sizes": method("lin0", "lin1", r=24, alpha=9),
            "alpha_fraction": method("lin0", "lin1", r=3, alpha=2.5),
            "dropouts": method("lin0", "lin1", rank_dropout=0.5, module_dropout=0.25),
            "patterns": method("lin0", "lin1", rank_pattern={"lin0": 3}, alpha_pattern={"lin1": 5, "lin.": 2}),
        }, gradients=True, merged=True),
        Case(f"{name}_mlp_plain_init_false", MLP_PLAIN,
             {"first": method("lin0", "lin1", r=3, alpha=40, init_weights=False, recipe=fresh)}, tour(ADAMW)),
        Case(f"{name}_blocks_fresh", blocks(), {"first": method("v_proj", "up_proj", recipe=fresh)},
             [load("first"), train("adamw", 0.02, 6), state_dict("first"), forward(), merge(), base_weights()]),
        Case(f"{name}_mlp_unchanged", MLP, {
            "fresh": method("lin0", "lin1", recipe=fresh), "alpha_0": method("lin0", "lin1", alpha=0)},
             parade(["fresh", "alpha_0"], merged=True), inert=True),
        parade_case(f"{name}_mlp_config_files", MLP, {
            "minimal": method("lin0", "lin1", r=8, alpha=8, edits=(keep_config("peft_type", "target_modules"),)),
            "unknown_key": edited(a_field_of_tomorrow={"depth": 2}, inference_mode=False,
                                  base_model_name_or_path="some/model"),
            "integers": edited(rank_dropout=0, module_dropout=0, alpha=6),
        }, gradients=True),
        Case(f"{name}_mlp_modules_to_save", MLP, saving,
             [load("first"), forward(), grads(), base_weights(), ADAMW, forward(), state_dict("first"), load("second"),
              active("second"), forward(), SGD, forward(), merge(), forward(), base_weights(), unmerge(),
              active("first"), forward(), disable(), forward(), enable(), delete("first"), forward(),
              state_dict("second")]),
        Case(f"{name}_blocks_modules_to_save", blocks(),
             {"first": method("q_proj", "lm_head", modules_to_save=["embed", "mlp"])},
             [load("first"), forward(), grads(), GENTLE_ADAMW, forward(), state_dict("first"), merge(), forward(),
              base_weights()]),
    ]


def selection(name: str, method: Method) -> list[Case]:
    layer = r"layers\.1\.attn\.q_proj"
    return [
        parade_case(f"{name}_blocks_select", blocks(2), {
            "excluded": method("q_proj", "v_proj", "up_proj", exclude_modules=["v_proj", "layers.0.mlp.up_proj"]),
            "excluded_by_regex": method("q_proj", "v_proj", exclude_modules=r".*\.1\..*"),
            "one_layer": method("q_proj", "up_proj", layers_to_transform=1, layers_pattern="layers"),
            "first_layer": method("v_proj", layers_to_transform=[0], layers_pattern=["blocks", "layers"]),
            "regex": method(target_modules=r"layers\.[01]\.(attn\.[qk]_proj|mlp\.up_proj)"),
            "paths": method("layers.0.attn.q_proj", "lm_head"),
        }),
        parade_case(f"{name}_blocks_patterns", blocks(2), {
            "ranks": method("q_proj", "up_proj", rank_pattern={layer: 1, "up_proj": 4}, alpha_pattern={layer: 3}),
            "anchored": method("q_proj", "up_proj", rank_pattern={r"^layers\.0\.mlp\.up_proj": 3, "proj": 5},
                               alpha_pattern={r"layers\.\d\.mlp\..*": 2}),
        }, gradients=True, merged=True),
        Case(f"{name}_llama_all_linear", llama(), {"first": method(target_modules="all-linear", r=1, alpha=1)},
             [load("first"), forward(), grads(), state_dict("first"), merge(), forward()]),
    ]


def failures(name: str, method: Method, tensor: str) -> list[Case]:
    def both(*edits, **config) -> Adapter:
        return method("lin0", "lin1", edits=edits, **config)

    def edited(**changes) -> Adapter:
        return both(edit_config(**changes))

    pair = {"first": method("lin0", "lin1"), "second": method("lin0", "lin1", r=1)}
    infinite = both(change_tensor(f"lin1.{tensor}", lambda values: values * math.inf))
    saving = {"first": method("lin0", modules_to_save=["lin1"]), "second": method("lin0", modules_to_save=["lin1"])}
    targets = {"embedding": "emb", "transposed": "conv1d"}
    return [
        refused(f"{name}_files", MLP, method("lin0", "lin1"),
                bad("cut_in_data", both(truncate(WEIGHTS, -40)), WEIGHTS),
                bad("no_tensor", both(drop_tensor(f"lin1.{tensor}")), "lin1", tensor, lenient=True),
                bad("misnamed", both(rename_tensor(f"lin0.{tensor}", f"lin0.{tensor}x")), "lin0", lenient=True),
                bad("narrow", both(change_tensor(f"lin0.{tensor}", lambda values: values[:, 1:])), "lin0", tensor),
                bad("short", both(change_tensor(f"lin1.{tensor}", lambda values: values[1:])), "lin1", tensor),
                bad("flat", both(change_tensor(f"lin0.{tensor}", lambda values: values.flatten())), "lin0", tensor),
                bad("no_saved_module", method("lin0", modules_to_save=["lin1"], edits=(drop_tensor("lin1.bias"),)),
                    "lin1", "bias")),
        refused(f"{name}_configs", MLP, method("lin0", "lin1"),
                bad("nowhere", edited(target_modules=["nope"]), "nope"),
                bad("rank_0", edited(r=0), "0"), bad("rank_negative", edited(r=-3), "-3"),
                bad("rank_pattern_0", edited(rank_pattern={"lin1": 0}), "lin1"),
                bad("pattern_without_layers", edited(layers_pattern="layers"), "layers_pattern")),
        refused(f"{name}_module_kinds", EMB_CONV1D, method("lin0"), *(
            bad(row, method("lin0", edits=(edit_config(target_modules=["lin0", target]),)), target)
            for row, target in targets.items())),
        Case(f"fails_{name}_operations", MLP, pair | {"broken": infinite}, [
            forward(), *seen(fails(active("first"), "first")), load("first"), load("second"), forward(), *seen(
                fails(load("first"), "first"), fails(active("ghost"), "ghost"),
                fails(delete("ghost"), "ghost"), fails(state_dict("ghost"), "ghost"),
                fails(scale("ghost", 2.0), "ghost", lenient=True), fails(merge("ghost"), "ghost", lenient=True),
                fails(weighted("sum", ["first", "second"], [0.5, 0.5], "linear")),
                fails(weighted("sum", ["first", "second"], [0.5, 0.5]))),
            *broken()[:-1], base_weights(), merge("first"), forward(), *seen(fails(delete("first"), "first")),
            base_weights(), unmerge(), forward(), grads(), delete("first"), active("second"), forward()]),
        Case(f"fails_{name}_saved_modules", MLP, saving, [
            load("first"), load("second"), forward(), *seen(fails(active("first", "second"), "lin1")),
            active("second"), forward()]),
    ]
