"""Adapter folders that must not load: the error names the culprit, and the model stays as it was."""

from oracle.adapters import (CONFIG, WEIGHTS, change_tensor, drop_tensor, edit_config, pruned, remove, rename_tensor,
                             truncate)
from oracle.spec import (Adapter, Case, Model, Step, adalora, base_weights, fails, forward, grads, ia3, load,
                         lora, state_dict)

from .common import CONV1D, MLP, bert, blocks

#: Name of an adapter, how it is made, the words that its error must contain, and whether PEFT accepts it: as the first
#: adapter of a model, and next to another one.
Bad = tuple[str, Adapter, tuple[str, ...], tuple[bool, bool]]


def bad(name: str, adapter: Adapter, *contains: str, lenient: bool = False, lenient_later: bool = False) -> Bad:
    return name, adapter, contains, (lenient, lenient or lenient_later)


def refused(name: str, model: Model, good: Adapter, *rows: Bad) -> Case:
    """Each bad adapter is refused, by the bare model and again next to a good one."""
    def refusals(turn: int) -> list[Step]:
        return [step for row, _, contains, lenient in rows
                for step in (fails(load(row), *contains, lenient=lenient[turn]), forward())]

    steps = [forward(), *refusals(0), load("good"), forward(), *refusals(1)]
    steps += [state_dict("good"), grads()]
    return Case(f"fails_load_{name}", model, {"good": good} | {row[0]: row[1] for row in rows}, steps)


def both(*edits, **config) -> Adapter:
    return lora("lin0", "lin1", edits=edits, **config)


def edited(**changes) -> Adapter:
    return both(edit_config(**changes))


GOOD = lora("lin0", "lin1", r=2)
OFT = Adapter("OFT", {"r": 2, "oft_block_size": 0, "target_modules": ["lin0"]})

CASES = [
    refused("files", MLP, GOOD,
            bad("cut_in_header", both(truncate(WEIGHTS, 60)), WEIGHTS),
            bad("cut_in_data", both(truncate(WEIGHTS, 700)), WEIGHTS),
            bad("empty_weights", both(truncate(WEIGHTS, 0)), WEIGHTS),
            bad("no_weights", both(remove(WEIGHTS)), WEIGHTS),
            bad("cut_config", both(truncate(CONFIG, 200)), CONFIG),
            bad("no_config", both(remove(CONFIG)), CONFIG),
            bad("no_b", both(drop_tensor("lin1.lora_B.weight")), "lin1", "lora_B", lenient=True),
            bad("no_a", both(drop_tensor("lin0.lora_A.weight")), "lin0", "lora_A", lenient=True),
            bad("misnamed", both(rename_tensor("lin1.lora_A.weight", "lin1.lora_A.waight")), "lin1", lenient=True),
            bad("narrow_a", both(change_tensor("lin0.lora_A.weight", lambda tensor: tensor[:, 1:])), "lin0", "lora_A"),
            bad("short_b", both(change_tensor("lin1.lora_B.weight", lambda tensor: tensor[1:])), "lin1", "lora_B"),
            bad("rank_of_tensors", edited(r=3), "lin0"),
            bad("no_magnitude", lora("lin0", "lin1", use_dora=True, edits=(
                drop_tensor("lin1.lora_magnitude_vector"),)), "lin1", "lora_magnitude_vector", lenient=True),
            bad("no_saved_module", lora("lin0", modules_to_save=["lin1"], edits=(
                drop_tensor("lin1.bias"),)), "lin1", "bias")),
    Case("fails_load_methods", MLP, {
        "good": GOOD, "unknown": edited(peft_type="SUPERLORA"),
        "velora": lora("lin0", velora_config={"num_groups": 2}),
        "invocation": lora("lin0", alora_invocation_tokens=[1, 2]),
        "kasa": lora("lin0", r=2, kasa_config={"beta": 1e-4}), "oft": OFT,
    }, [step for step in (
        fails(load("oft"), "OFT", lenient=True), fails(load("unknown"), "SUPERLORA"), load("good"),
        fails(load("oft"), "OFT"), fails(load("unknown"), "SUPERLORA"),
        fails(load("velora"), "velora_config", lenient=True),
        fails(load("invocation"), "alora_invocation_tokens", lenient=True), fails(load("kasa"), "kasa_config"),
        state_dict("good")) for step in (step, forward())]),
    refused("lora_configs", MLP, GOOD,
            bad("nowhere", edited(target_modules=["nope"]), "nope"),
            bad("nowhere_by_regex", edited(target_modules="lin[5-9]"), "lin[5-9]"),
            bad("bad_regex", edited(target_modules="lin(0"), "lin(0"),
            bad("all_excluded", edited(exclude_modules=["lin0", "lin1"])),
            bad("only_saved", edited(target_modules=["lin1"], modules_to_save=["lin1"])),
            bad("rank_0", edited(r=0), "0"), bad("rank_negative", edited(r=-3), "-3"),
            bad("rank_pattern_0", edited(rank_pattern={"lin1": 0}), "lin1"),
            bad("bias_some", edited(bias="some"), "some", lenient_later=True),
            bad("init_unknown", edited(init_lora_weights="spherical"), "spherical"),
            bad("orthogonal_odd", lora("lin0", r=3, edits=(edit_config(init_lora_weights="orthogonal"),)), "3"),
            bad("lora_bias_and_dora", edited(lora_bias=True, use_dora=True), "lora_bias"),
            bad("task_type", edited(task_type="DREAMING"), "DREAMING")),
    refused("blocks", blocks(), lora("q_proj"),
            bad("lora_bias_of_embedding", lora("embed", edits=(edit_config(lora_bias=True),)), "lora_bias"),
            bad("no_index_without_pattern", lora("q_proj", edits=(edit_config(layers_to_transform=[0]),))),
            bad("no_such_layer", lora("q_proj", edits=(edit_config(layers_to_transform=[7], layers_pattern="layers"),)),
                "7"),
            bad("pattern_without_layers", lora("q_proj", edits=(edit_config(layers_pattern="layers"),)),
                "layers_pattern"),
            bad("layers_with_regex", lora(target_modules=".*q_proj", edits=(edit_config(layers_to_transform=[0]),)),
                "layers_to_transform")),
    refused("adalora_values", MLP, adalora("lin0"),
            bad("no_total_step", adalora("lin0", edits=(edit_config(total_step=None),)), "total_step"),
            bad("no_time_to_cut", adalora("lin0", edits=(edit_config(tinit=6, tfinal=4),)), "tinit"),
            bad("negative_weight", adalora("lin0", edits=(edit_config(orth_reg_weight=-0.5),)), "orth_reg_weight"),
            bad("dora", adalora("lin0", edits=(edit_config(use_dora=True),)), "dora"),
            bad("pattern_of_others", adalora("lin0", recipe=pruned({"lin0": "x.x."}), edits=(
                edit_config(rank_pattern={"lin0.lora_E": [True, True, True, False]}),)), "lin0"),
            bad("no_e", adalora("lin0", edits=(drop_tensor("lora_E"),)), "lin0", "lora_E", lenient=True)),
    refused("ia3_values", MLP, ia3("lin0"),
            bad("feedforward_elsewhere", ia3("lin0", edits=(edit_config(feedforward_modules=["lin1"]),))),
            bad("no_vector", ia3("lin0", "lin1", edits=(drop_tensor("lin1.ia3_l"),)), "lin1", "ia3_l", lenient=True)),
    refused("module_kinds_lora", bert(), lora("query"),
            bad("norm", lora("query", edits=(edit_config(target_modules=["query", "LayerNorm"]),)), "LayerNorm")),
    refused("module_kinds_ia3", CONV1D, ia3("lin0"),
            bad("conv1d", ia3("lin0", edits=(edit_config(target_modules=["lin0", "conv1d"]),)), "conv1d")),
    refused("module_kinds_adalora", blocks(), adalora("q_proj"),
            bad("embedding", adalora("q_proj", edits=(edit_config(target_modules=["q_proj", "embed"]),)), "embed")),
    Case("fails_load_second_bias", MLP, {"good": lora("lin0", bias="all"), "second": lora("lin0", bias="lora_only")},
         [load("good"), forward(), fails(load("second"), "bias"), forward(), base_weights()]),
]
