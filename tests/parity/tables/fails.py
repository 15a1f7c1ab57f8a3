"""Operations that must fail by name and leave the model as it was.

`lenient` marks what PEFT silently accepts; there the format page requires an error.
"""

import math

from oracle.adapters import change_tensor, edit_config
from oracle.spec import (Case, Step, active, adalora, base_weights, delete, dora, fails, forward, grads, ia3, load,
                         lora, merge, mixed, scale, state_dict, unmerge, weighted)

from .common import MLP, blocks, conv2d

PAIR = {"first": lora("lin0", "lin1"), "second": lora("lin0", "lin1", r=2)}
LOAD = [load("first"), load("second"), forward()]


def seen(*failures: Step) -> list[Step]:
    """Each failure is followed by a check of the output."""
    return [step for failure in failures for step in (failure, forward())]


def infinite(method, ending: str, **config):
    return method("lin0", "lin1", edits=(change_tensor(ending, lambda tensor: tensor * math.inf),), **config)


def broken(name: str = "broken") -> list[Step]:
    """A safe merge refuses the adapter; another one still merges."""
    return [load(name), *seen(fails(merge(name, safe=True), name)), base_weights()]


MERGED = [merge(safe=True), forward(), base_weights(), unmerge(), forward()]

CASES = [
    Case("fails_unknown_adapter", MLP, PAIR, [
        forward(), *seen(fails(active("first"), "first")), *LOAD, *seen(
            fails(load("first"), "first"),
            fails(load("second"), "second"),
            fails(active("ghost"), "ghost"),
            fails(delete("ghost"), "ghost"),
            fails(state_dict("ghost"), "ghost"),
            fails(scale("ghost", 2.0), "ghost", lenient=True),
            fails(merge("ghost"), "ghost", lenient=True),
            fails(merge("second", "ghost"), "ghost", lenient=True),
            fails(mixed("first", "ghost", "second", "first"), "ghost"),
            fails(weighted("sum", ["first", "ghost"], [1.0, 1.0], "cat"), "ghost")),
        base_weights(), grads(), active("second"), forward(), active("first"), delete("second"),
        *seen(fails(active("second"), "second"), fails(state_dict("second"), "second"),
              fails(delete("second"), "second")), load("second"), active("second"), forward(), state_dict("first"),
        state_dict("second")]),
    Case("fails_delete_merged_and_mixed", MLP, PAIR | {"third": dora("lin0", "lin1")}, [
        *LOAD, load("third"), *seen(
            fails(mixed("first", "second")), fails(mixed("first", "third", "first", "first"), "third")),
        merge("first"),
        *seen(fails(delete("first"), "first"), fails(mixed("first", "second", "second", "first"))), base_weights(),
        active("first", "second"), merge(), *seen(fails(delete("second"), "second")), unmerge(),
        mixed("first", "second", "second", "first"), delete("second"), forward()]),
    Case("fails_saved_modules", MLP,
         {"first": lora("lin0", modules_to_save=["lin1"]), "second": lora("lin0", modules_to_save=["lin1"]),
          "third": lora("lin0", r=2)}, [
             *LOAD, load("third"), *seen(
                 fails(active("first", "second"), "lin1"),
                 fails(weighted("sum", ["first", "second"], [0.5, 0.5], "cat"), "lin1"),
                 fails(mixed("first", "third", "first", "first"), "third")),
             active("second"), forward()]),
    Case("fails_safe_merge", MLP,
         {"first": lora("lin0", "lin1"), "lora": infinite(lora, "lin1.lora_B.weight"),
          "dora": infinite(dora, "lin1.lora_magnitude_vector")},
         [load("first"), forward(), *broken("lora"), *broken("dora"), *MERGED]),
    Case("fails_adalora", MLP, {"first": adalora("lin0", "lin1"), "broken": infinite(adalora, "lin1.lora_E")},
         [load("first"), forward(), *broken(), *MERGED,
          *seen(fails(weighted("sum", ["first", "broken"], [0.5, 0.5], "cat")))]),
    Case("fails_ia3", MLP, {"first": ia3("lin0", "lin1", feedforward=["lin1"]),
                            "broken": infinite(ia3, "lin1.ia3_l", feedforward=["lin1"]),
                            "other_role": ia3("lin0", edits=(edit_config(feedforward_modules=["lin0"]),))},
         [forward(), *seen(fails(load("other_role"), "lin0", "ia3_l")), load("first"), forward(), *broken(), *MERGED,
          *seen(fails(weighted("sum", ["first", "ghost"], [0.5, 0.5]), "ghost"))]),
    Case("fails_groups", conv2d(cin=4, groups=2),
         {"first": lora("lin0"), "second": lora("conv2d", "lin0"), "third": dora("conv2d"),
          "rank_3": lora("conv2d", edits=(edit_config(r=3),))}, [
             forward(), *seen(fails(load("rank_3"), "conv2d", "3")), *LOAD, load("third"),
             *seen(fails(load("rank_3"), "conv2d", "3"), fails(merge("second"), "conv2d"),
                   fails(merge("third"), "conv2d")),
             base_weights(), merge("first"), forward(), unmerge(), active("second"), forward(), grads()]),
    Case("fails_merge_lora_bias", blocks(),
         {"first": lora("up_proj"), "second": lora("up_proj", "q_proj", lora_bias=True)}, [
             *LOAD, *seen(fails(merge("second"), "layers.0.attn.q_proj")), base_weights(), active("second"), forward(),
             grads()]),
    Case("fails_weighted", MLP, PAIR | {"third": lora("lin0", "lin1", lora_alpha=3)}, [
        *LOAD, load("third"), *seen(
            fails(weighted("sum", ["first", "second"], [0.5, 0.5], "linear"), "second"),
            fails(weighted("sum", ["first", "second"], [0.5, 0.5], "ties", density=0.5), "second"),
            fails(weighted("sum", ["first", "third"], [0.5, 0.5], "blend"), "blend"),
            fails(weighted("sum", ["first", "third"], [0.5, 0.5], "ties", density=-0.5), "-0.5"),
            fails(weighted("sum", ["first", "third"], [0.5, 0.5], "ties"), "density"),
            fails(weighted("sum", ["first", "third"], [0.5, 0.5], "ties", density=0.5,
                           majority_sign_method="loudest"), "loudest"),
            fails(weighted("sum", ["first", "third"], [0.5, 0.5], "svd", svd_rank=50), "50")),
        *seen(fails(active("sum"), "sum")), weighted("sum", ["first", "third"], [0.5, 0.5], "linear"), active("sum"),
        forward()]),
]
