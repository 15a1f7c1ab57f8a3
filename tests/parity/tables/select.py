"""Which modules an adapter goes to: targets, exclusions, layer filters, patterns, modules to save."""

from oracle.adapters import edit_config
from oracle.spec import (Case, Step, base_weights, disable, enable, forward, grads, ia3, load, lora, merge,
                         state_dict, train, unmerge)

from .common import EMB_CONV1D, MLP, bert, blocks, conv2d, gpt2, llama, parade_case

ALL_LINEAR = {"target_modules": "all-linear", "edits": (edit_config(target_modules="all-linear"),)}
NULL = {"r": 2, "edits": (edit_config(target_modules=None),)}

REGEXES = {
    "plain": lora(target_modules=r"layers\.\d+\.attn\.[qk]_proj"),
    "look_ahead": lora(target_modules=r"(?!lm_head)(?!.*layers\.0).*(_proj|head)"),
    "look_behind": lora(target_modules=r".*(?<!up)(?<!down)_proj"),
    "back_reference": lora(target_modules=r"layers\.(\d+)\.(attn|mlp)\.(q|up)_proj|layers\.(1)\.mlp\.(down)_\5?proj"),
    "groups": lora(target_modules=r"(?:layers\.1\.)(?:mlp\.(?:up|down)_proj)"),
}
LISTS = {
    "paths": lora("layers.1.attn.q_proj", "attn.k_proj", "1.mlp.up_proj"),
    "without_effect": lora("v_proj", "w_proj", "roj", "m_head", exclude_modules=["no_proj"]),
    "exclude_list": lora("q_proj", "k_proj", "embed", exclude_modules=["layers.0.attn.q_proj", "k_proj"]),
    "exclude_regex": lora("q_proj", "up_proj", exclude_modules=r"layers\.0\..*"),
    "exclude_from_regex": lora(target_modules=".*_proj", exclude_modules=["o_proj", "down_proj"]),
}
LAYERS = {
    "int": lora("q_proj", "down_proj", layers_to_transform=1, layers_pattern="layers"),
    "list": lora("q_proj", "down_proj", layers_to_transform=[0, 2], layers_pattern=["layers"]),
    "patterns": lora("v_proj", layers_to_transform=[1, 2], layers_pattern=["h", "layers"]),
    "exact_name_bypasses": lora("q_proj", "layers.0.attn.k_proj", layers_to_transform=[1], layers_pattern="layers"),
    "empty_list": lora("q_proj", layers_to_transform=[]),
    # So many that PEFT looks for shorter names with the same meaning when it saves them.
    "many_exact_names": lora(r=1, lora_alpha=1, target_modules=["embed", "lm_head", *(
        f"layers.{layer}.{name}" for layer in range(3)
        for name in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.up_proj", "mlp.down_proj"))]),
}
PATTERNS = {
    "path": lora("q_proj", "v_proj", rank_pattern={"layers.0.attn.q_proj": 1, "v_proj": 3},
                 alpha_pattern={"q_proj": 2, "layers.1.attn.v_proj": 12}),
    "regex": lora("q_proj", "up_proj", rank_pattern={r"layers\.[01]\..*q_proj": 2},
                  alpha_pattern={r"layers\.[02]\.(attn|mlp)\.(q|up)_proj": 1}),
    "anchored": lora("q_proj", "v_proj", rank_pattern={r"^layers\.1\.attn\.q_proj": 2, r"^attn\.v_proj": 1}),
    "part_of_a_name": lora("embed", "up_proj", rank_pattern={"p_proj": 2, "roj": 1, "mbed": 3}),
    "both": lora("embed", "q_proj", "mlp.up_proj", rank_pattern={"embed": 6, "q_proj": 1},
                 alpha_pattern={"up_proj": 3, "q_proj": 5}),
}
TARGETS = [("bert", bert()), ("llama", llama(2)), ("gpt2", gpt2(2))]

SAVED = [
    ("emb_conv1d_ia3", EMB_CONV1D, ia3("conv1d", modules_to_save=["lin0"], feedforward=["conv1d"]), ()),
    ("blocks", blocks(2), lora("q_proj", "lm_head", modules_to_save=[
        "layers.1.mlp", "embed", "s.0.attn.v_proj", "classifier"]), [train("sgd", 0.05, 4)]),
    ("blocks_every_mlp", blocks(), lora("q_proj", "up_proj", modules_to_save=["mlp"]), ()),
    ("emb_conv1d", EMB_CONV1D, lora("emb", modules_to_save=["conv1d", "lin0"]), ()),
    ("conv2d", conv2d(), lora("lin0", modules_to_save=["conv2d"]), ()),
    ("bert", bert(), lora("query", modules_to_save=["attention.output.LayerNorm", "intermediate"]),
     [train("sgd", 0.2, 3)]),
    ("llama", llama(), lora("q_proj", modules_to_save=["lm_head", "input_layernorm"]), ()),
]


def saved_tour(*trainings: Step) -> list[Step]:
    return [load("first"), forward(), grads(), disable(), forward(), enable(), forward(), *trainings,
            *([forward()] if trainings else []), state_dict("first")]


CASES = [
    parade_case("select_regexes", blocks(2), REGEXES, gradients=True),
    parade_case("select_lists", blocks(2), LISTS, gradients=True),
    parade_case("select_layers", blocks(3), LAYERS, gradients=True),
    parade_case("select_rank_and_alpha_patterns", blocks(2), PATTERNS, gradients=True),
    parade_case("select_layers_bert", bert(2), {
        "no_pattern": lora("query", "dense", layers_to_transform=1),
        "pattern": lora("key", layers_to_transform=[1], layers_pattern="encoder.layer"),
    }),
    parade_case("select_all_linear_blocks", blocks(), {
        "any_case": lora(target_modules="all-linear", edits=(edit_config(target_modules="ALL-Linear"),)),
        "without": lora(**ALL_LINEAR, exclude_modules=["lm_head", "k_proj"]),
    }),
    *(parade_case(f"select_targets_{name}", model, {"all_linear": lora(r=2, **ALL_LINEAR), "null": lora(**NULL)})
      for name, model in TARGETS),
    *(Case(f"select_saved_{name}", model, {"first": adapter}, saved_tour(*trainings))
      for name, model, adapter, trainings in SAVED),
    Case("select_saved_mlp", MLP, {"first": lora("lin0", "lin1", modules_to_save=["lin1"])},
         [*saved_tour(train("adamw", 0.02, 4, weight_decay=0.1)), base_weights(), merge(), forward(), base_weights(),
          unmerge(), forward(), base_weights()]),
]
