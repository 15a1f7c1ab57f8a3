"""DoRA on every kind of layer; for convolutions other than the plain one, see `conv.py`."""

from oracle.adapters import fresh, rename_tensor
from oracle.spec import (Case, active, base_weights, disable, dora, enable, forward, grads, load, lora, merge, scale,
                         state_dict, train, unmerge)

from .common import CONV1D, EMB_CONV1D, MLP, bert, blocks, conv2d, gpt2, llama, parade_case, tour

LAYERS = [
    ("mlp", MLP, dora("lin0", "lin1", lora_alpha=32, r=8), train("sgd", 0.01, 4),
     train("adamw", 0.02, 4, weight_decay=0.1)),
    ("blocks", blocks(), dora("embed", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head",
                               r=2), train("sgd", 0.02, 3), train("adamw", 0.01, 3)),
    ("emb_conv1d", EMB_CONV1D, dora("emb", "conv1d", "lin0"), train("sgd", 0.02, 3), train("adamw", 0.01, 4)),
    ("conv1d", CONV1D, dora("conv1d"), train("sgd", 0.05, 3), train("adamw", 0.01, 3)),
    ("conv2d", conv2d(), dora("conv2d", "lin0"), train("sgd", 0.02, 3), train("adamw", 0.005, 3)),
    ("gpt2", gpt2(), dora("c_attn", "c_fc", r=2), train("sgd", 0.1, 3)),
]

TRAININGS = [
    ("bert", bert(), dora("query", "value"), train("adamw", 0.01, 3)),
    ("llama", llama(), dora("v_proj", "down_proj"), train("sgd", 0.1, 3)),
]

#: Two adapters of which at least one is DoRA, in both orders; the order decides the output.
PAIRS = [
    ("mlp_dora_lora", MLP, dora("lin0", "lin1"), lora("lin0", "lin1", r=2)),
    ("mlp_dora_dora", MLP, dora("lin0", "lin1"), dora("lin0", "lin1", r=2)),
    ("emb_conv1d_dora_lora", EMB_CONV1D, dora("conv1d", "emb"), lora("conv1d", "emb", r=2)),
    ("emb_conv1d_dora_dora", EMB_CONV1D, dora("conv1d", "emb"), dora("lin0", "emb", r=2)),
    ("conv1d_dora_dora", CONV1D, dora("conv1d"), dora("conv1d", "lin0", r=2)),
    ("conv2d_dora_lora", conv2d(), dora("conv2d"), lora("conv2d", "lin0", r=2)),
]

CASES = [
    *(Case(f"dora_{name}", model, {"first": adapter}, tour(*trainings, weights=name != "gpt2"))
      for name, model, adapter, *trainings in LAYERS),
    *(Case(f"dora_{name}", model, {"first": adapter},
           [load("first"), forward(), grads(), training, forward(), state_dict("first")])
      for name, model, adapter, training in TRAININGS),
    parade_case("dora_mlp_options", MLP, {
        "rslora_patterns": dora("lin0", "lin1", use_rslora=True, rank_pattern={"lin0": 2}, alpha_pattern={"lin1": 3}),
        "magnitude_key_of_memory": dora("lin0", "lin1", lora_dropout=0.4, edits=(
            rename_tensor("lora_magnitude_vector", "lora_magnitude_vector.weight"),)),
        "init_false": dora("lin0", "lin1", init_lora_weights=False, recipe=fresh),
    }, gradients=True, merged=True),
    *(Case(f"dora_pair_{name}", model, {"first": first, "second": second},
           [load("first"), load("second"), forward(), active("first", "second"), forward(), merge(), forward(),
            base_weights(), unmerge(), base_weights(), active("second", "first"), forward(), merge(), forward(),
            base_weights(), unmerge(), forward(), active("second"), forward(), grads()])
      for name, model, first, second in PAIRS),
    Case("dora_mlp_fresh", MLP, {"first": dora("lin0", "lin1", recipe=fresh)},
         [load("first"), forward(), state_dict("first"), train("sgd", 0.1, 3), forward()], inert=True),
    Case("dora_mlp_operations", MLP, {"first": dora("lin0", "lin1"), "second": dora("lin0", r=2)},
         [load("first"), forward(), scale("first", 0.5), forward(), grads(), merge(safe=True), forward(),
          base_weights(), disable(), forward(), enable(), forward(), unmerge(), base_weights(), load("second"),
          merge("first"), forward(), base_weights(), merge("second"), forward(), base_weights(), unmerge(), forward(),
          base_weights()]),
    Case("dora_mlp_bias_and_saved_module", MLP, {"first": dora("lin0", bias="all", modules_to_save=["lin1"])},
         [load("first"), forward(), grads(), state_dict("first"), merge(), forward(), base_weights()]),
]
