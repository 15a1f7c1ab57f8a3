"""The options of a LoRA config."""

from oracle.adapters import edit_config, fresh, keep_config
from oracle.spec import (Case, active, base_weights, forward, grads, load, lora, merge, state_dict, train, unmerge)

from .common import CONV1D, EMB_CONV1D, MLP, bert, blocks, conv2d, gpt2, parade, parade_case, tour

#: A fresh adapter changes nothing unless `init_lora_weights` is false.
CHANGED = {"init_lora_weights": False, "recipe": fresh}

SCALINGS = [
    ("mlp", MLP, {
        "r_1": lora("lin0", "lin1", r=1, lora_alpha=-4),
        "r_above_sizes": lora("lin0", "lin1", r=12),
        "alpha_fraction": lora("lin0", "lin1", lora_alpha=2.5, lora_dropout=0.5),
        "rslora_patterns": lora("lin0", "lin1", use_rslora=True, rank_pattern={"lin0": 3}, alpha_pattern={"lin1": 5}),
        "init_false": lora("lin0", "lin1", **CHANGED),
    }),
    ("emb_conv1d", EMB_CONV1D, {
        "rslora_dropout": lora("emb", "conv1d", use_rslora=True, lora_dropout=0.3),
        "patterns": lora("emb", "conv1d", rank_pattern={"emb": 2}, alpha_pattern={"conv1d": 1}),
        "init_false": lora("emb", "conv1d", **CHANGED),
        "fan_in_fan_out": lora("conv1d", "lin0", fan_in_fan_out=True),
    }),
    ("conv2d", conv2d(), {
        "rslora_dropout": lora("conv2d", use_rslora=True, lora_alpha=3, lora_dropout=0.3),
        "patterns": lora("conv2d", "lin0", rank_pattern={"conv2d": 3}, alpha_pattern={"lin0": 1}),
        "init_false": lora("conv2d", **CHANGED),
    }),
]

SGD, ADAMW = train("sgd", 0.1, 3), train("adamw", 0.02, 3, weight_decay=0.1)
BIASES = [
    ("blocks_all", blocks(), lora("q_proj", "down_proj", bias="all"), ADAMW),
    ("blocks_lora_only", blocks(), lora("up_proj", "q_proj", bias="lora_only"), SGD),
    ("conv2d_all", conv2d(), lora("conv2d", bias="all"), SGD),
    ("emb_conv1d_all", EMB_CONV1D, lora("emb", "conv1d", bias="all"), SGD),
]

CASES = [
    *(parade_case(f"options_{name}", model, adapters, gradients=True, merged=True)
      for name, model, adapters in SCALINGS),
    Case("options_unchanged", MLP, {
        "alpha_0": lora("lin0", "lin1", lora_alpha=0),
        "gaussian": lora("lin0", "lin1", init_lora_weights="gaussian", recipe=fresh),
    }, [*parade(["alpha_0"], merged=True), *parade(["gaussian"], gradients=True)], inert=True,
         still=("lora_A.weight",)),
    Case("options_fresh_blocks_train", blocks(), {"first": lora("v_proj", "embed", recipe=fresh)},
         [load("first"), train("adamw", 0.02, 5), state_dict("first"), forward()]),
    *(Case(f"options_bias_{name}", model, {"first": adapter},
           [load("first"), forward(), base_weights(), grads(), training, state_dict("first"), forward(),
            base_weights(), merge(), base_weights()]) for name, model, adapter, training in BIASES),
    Case("options_bias_bert_all", bert(), {"first": lora("query", "value", bias="all")},
         [load("first"), forward(), SGD, state_dict("first"), forward()], still=("key.bias",)),
    Case("options_bias_mlp_modules_to_save", MLP,
         {"first": lora("lin0", bias="lora_only", modules_to_save=["lin1"])},
         [load("first"), forward(), grads(), state_dict("first"), base_weights(), ADAMW, forward(), base_weights()]),
    Case("options_lora_bias_mlp", MLP,
         {"first": lora("lin0", "lin1", lora_bias=True, lora_alpha=32), "second": lora("lin0", "lin1")},
         [*tour(ADAMW), load("second"), active("first", "second"), forward(), merge(), forward(), base_weights(),
          unmerge(), base_weights()]),
    Case("options_lora_bias_conv2d", conv2d(), {"first": lora("conv2d", lora_bias=True, lora_alpha=32)}, tour()),
    Case("options_lora_bias_conv1d", CONV1D, {"first": lora("conv1d", "lin0", lora_bias=True, r=2)}, tour()),
    Case("options_lora_bias_emb_conv1d", EMB_CONV1D, {"first": lora("conv1d", "lin0", lora_bias=True)}, tour(SGD)),
    Case("options_fan_in_fan_out_off_on_conv1d", gpt2(),
         {"first": lora("c_attn", edits=(edit_config(fan_in_fan_out=False),))},
         [load("first"), forward(), merge(), forward(), unmerge(), forward(), state_dict("first")]),
    parade_case("options_config_files", MLP, {
        "fan_in_fan_out": lora("lin0", "lin1", edits=(edit_config(fan_in_fan_out=True),)),
        "early_release": lora("lin0", "lin1", lora_alpha=6, edits=(keep_config(
            "peft_type", "r", "lora_alpha", "target_modules", "lora_dropout", "bias", "fan_in_fan_out",
            "base_model_name_or_path", "inference_mode", "modules_to_save", "task_type"),)),
        "minimal": lora("lin0", "lin1", lora_alpha=8, r=8, edits=(keep_config("peft_type", "target_modules"),)),
        "unknown_key": lora("lin0", "lin1", edits=(edit_config(
            a_field_of_tomorrow={"depth": 2}, inference_mode=False, base_model_name_or_path="some/model"),)),
    }, gradients=True, merged=True),
]
