"""LoRA on the custom models: every operation, on every kind of layer."""

from oracle.spec import (Case, active, base_weights, delete, disable, enable, forward, grads, load, lora, merge, scale,
                         state_dict, train, unmerge)

from .common import CONV1D, EMB_CONV1D, MLP, blocks, conv2d, parade_case, tour

BOTH = {"first": lora("lin0", "lin1", r=4, lora_alpha=8), "second": lora("lin0", "lin1", r=2, lora_alpha=6)}
APART = {"first": lora("lin0"), "second": lora("lin1")}
OVERLAP = {"first": lora("lin0", "lin1"), "second": lora("lin1"), "third": lora("lin0", r=2)}

LAYERS = [
    ("mlp", MLP, lora("lin0", "lin1", r=8), train("sgd", 0.1, 4, weight_decay=0.1),
     train("adamw", 0.02, 4, weight_decay=0.3)),
    ("blocks_everything", blocks(2), lora("embed", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj",
                                         "lm_head", r=2, lora_alpha=2),
     train("sgd", 0.05, 4), train("adamw", 0.01, 4)),
    ("emb_conv1d_all", EMB_CONV1D, lora("emb", "conv1d", "lin0"), train("sgd", 0.05, 4),
     train("adamw", 0.02, 4, weight_decay=0.1)),
    ("conv1d_both", CONV1D, lora("conv1d", "lin0"), train("sgd", 0.05, 4), train("adamw", 0.02, 3)),
    ("conv2d_both", conv2d(), lora("conv2d", "lin0", r=2), train("sgd", 0.0005, 3), train("adamw", 0.002, 3)),
]

CASES = [
    *(Case(f"lora_{name}", model, {"first": adapter}, tour(*trainings))
      for name, model, adapter, *trainings in LAYERS),
    parade_case("lora_mlp_names", MLP,
                {"default": lora(target_modules="lin0"), "my-adapter_2": lora("lin1"), "X": lora("lin0", "lin1")},
                merged=True),
    Case("lora_mlp_merge_and_disable", MLP, {"first": lora("lin0", "lin1")},
         [load("first"), forward(), merge(safe=True), forward(), base_weights(), unmerge(), forward(), base_weights(),
          merge(), merge(), forward(), base_weights(), disable(), forward(), enable(), forward(), unmerge(), forward(),
          base_weights(), disable(), merge(), forward(), enable(), forward(), unmerge(), forward(), base_weights()]),
    Case("lora_mlp_scale", MLP, BOTH,
         [load("first"), forward(), scale("first", 2.0), forward(), scale("first", -0.25), forward(), grads(), merge(),
          forward(), base_weights(), unmerge(), base_weights(), state_dict("first"), load("second"),
          active("first", "second"), forward(), scale("second", 3.0), forward(), active("first"), forward(),
          active("second"), forward()]),
    Case("lora_mlp_two_adapters", MLP, BOTH,
         [load("first"), load("second"), forward(), active("second"), forward(), grads(), active("first", "second"),
          forward(), active("second", "first"), forward(), merge(), forward(), base_weights(), unmerge(),
          base_weights()]),
    Case("lora_mlp_two_layers_apart", MLP, APART,
         [load("first"), load("second"), forward(), active("second"), forward(), active("first", "second"), forward(),
          merge("first"), forward(), base_weights(), unmerge(), forward(), merge(), forward(), base_weights(),
          state_dict("first"), state_dict("second")]),
    Case("lora_mlp_three_orders", MLP, OVERLAP,
         [load("third"), load("first"), load("second"), forward(), active("first", "second", "third"), forward(),
          active("third", "first"), forward(), active("second", "third"), forward(), merge(), forward(),
          base_weights()]),
    Case("lora_mlp_merge_one_of_two", MLP, BOTH,
         [load("first"), load("second"), forward(), merge("second"), forward(), base_weights(), unmerge(), forward(),
          active("first", "second"), forward(), merge("second"), forward(), base_weights(), merge("first"), forward(),
          unmerge(), forward(), base_weights()]),
    Case("lora_mlp_set_active", MLP, BOTH,
         [load("first"), load("second"), merge(), forward(), base_weights(), active("second"), forward(),
          base_weights(), merge(), active("second"), base_weights(), forward(), active(), forward(), active("second"),
          forward(), merge("first"), active(), forward(), base_weights()]),
    Case("lora_mlp_delete", MLP, BOTH,
         [forward(), load("first"), load("second"), delete("second"), forward(), merge(), forward(), unmerge(),
          load("second"), active("first", "second"), forward(), delete("first"), forward(), state_dict("second"),
          load("first"), forward(), active("first", "second"), forward(), delete("second"), delete("first"), forward(),
          base_weights()]),
    Case("lora_mlp_delete_active_of_three", MLP,
         {"beta": lora("lin0", "lin1"), "gamma": lora("lin0", "lin1"), "alpha": lora("lin0", "lin1", r=2)},
         [load("beta"), load("gamma"), load("alpha"), forward(), delete("beta"), forward(), delete("gamma"),
          forward()]),
    Case("lora_emb_conv1d_two_adapters", EMB_CONV1D, {"first": lora("emb", "conv1d"), "second": lora("emb", "lin0")},
         [load("first"), load("second"), active("first", "second"), forward(), merge(), forward(), base_weights(),
          unmerge(), base_weights(), active("second"), forward(), grads()]),
]
