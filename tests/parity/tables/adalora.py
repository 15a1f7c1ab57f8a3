"""AdaLoRA: its layers, its rank allocator through all phases, and adapters saved with dropped ranks."""

from oracle.adapters import fresh, pruned, randomised, trained
from oracle.spec import (Case, active, adalora, base_weights, delete, disable, enable, forward, grads, load, merge,
                         scale, state_dict, train, unmerge)

from .common import EMB_CONV1D, MLP, bert, blocks, conv2d, gpt2, llama, parade_case, tour

LAYERS = [
    ("mlp", MLP, adalora("lin0", "lin1", lora_alpha=3, init_r=6, tinit=2, tfinal=2, deltaT=2),
     train("adamw", 0.02, 10)),
    ("blocks", blocks(), adalora("q_proj", "v_proj", "down_proj", tinit=2, tfinal=2), train("sgd", 0.02, 10)),
    ("emb_conv1d", EMB_CONV1D, adalora("conv1d", "lin0", tinit=1, tfinal=2), train("sgd", 0.02, 10)),
    ("conv2d", conv2d(k=2, stride=2), adalora("conv2d", "lin0", tinit=1, tfinal=2, deltaT=2), train("sgd", 0.02, 10)),
    ("bert", bert(), adalora("query", "value", tinit=1, tfinal=2), train("adamw", 0.01, 10)),
    ("llama", llama(), adalora("q_proj", "v_proj", "down_proj", tinit=1, tfinal=2), train("adamw", 0.01, 10)),
    ("gpt2", gpt2(), adalora("c_attn", "c_proj", tinit=1, tfinal=2), train("sgd", 0.05, 10)),
]
#: A draw that leaves a clear gap wherever the allocator cuts.
SALTS = {"mlp": 1}

#: Warm-up until `tinit`, cuts every `deltaT` steps, the last cut at `total_step - tfinal`, then the fixed pattern.
SCHEDULES = [
    ("warm_up", {"tinit": 6, "tfinal": 2}, ("sgd", 0.05, 5)),
    ("every_step", {"total_step": 8, "orth_reg_weight": 0.0}, ("sgd", 0.1, 8)),
    ("through_all_phases", {"tinit": 2, "tfinal": 3}, ("sgd", 0.05, 10)),
    ("every_third_step", {"init_r": 6, "target_r": 1, "tinit": 1, "tfinal": 2, "deltaT": 3, "total_step": 14},
     ("sgd", 0.05, 14)),
    ("past_the_end", {"tinit": 1, "tfinal": 1, "total_step": 6}, ("sgd", 0.05, 9)),
    ("betas", {"beta1": 0.5, "beta2": 0.7, "tinit": 1, "tfinal": 2, "orth_reg_weight": 3.0}, ("sgd", 0.02, 10)),
    ("adamw_decay", {"tinit": 1, "tfinal": 2}, ("adamw", 0.02, 6, 0.2)),
]

DROPPED = [
    ("mlp_layer_gone", MLP, ("lin0", "lin1"), {"lin0": "....", "lin1": "xx.x"}),
    ("blocks", blocks(), ("q_proj", "k_proj", "v_proj", "o_proj"), {
        "layers.0.attn.q_proj": "xx..", "layers.0.attn.k_proj": "....", "layers.0.attn.v_proj": "x..x",
        "layers.0.attn.o_proj": "xxxx"}),
    ("conv2d", conv2d(), ("conv2d", "lin0"), {"conv2d": ".xx.", "lin0": "...x"}),
    ("emb_conv1d", EMB_CONV1D, ("conv1d",), {"conv1d": "..x."}),
]

CASES = [
    *(Case(f"adalora_{name}", model, {"first": adapter}, tour(training, weights=not model.kind.startswith("tiny")),
           salt=SALTS.get(name, 0)) for name, model, adapter, training in LAYERS),
    *(Case(f"adalora_train_{name}", MLP, {"first": adalora("lin0", "lin1", **schedule)},
           [load("first"), forward(), train(*training), forward(), state_dict("first")])
      for name, schedule, training in SCHEDULES),
    *(Case(f"adalora_dropped_{name}", model, {"first": adalora(*targets, recipe=pruned(kept))}, tour())
      for name, model, targets, kept in DROPPED),
    Case("adalora_train_fresh", MLP, {"first": adalora("lin0", "lin1", tinit=2, tfinal=2, recipe=fresh)},
         [load("first"), forward(), train("adamw", 0.05, 10), forward(), state_dict("first")], inert=True),
    Case("adalora_saved_after_training", MLP,
         {"first": adalora("lin0", "lin1", tinit=1, tfinal=2, recipe=trained(randomised, lr=0.05, steps=10))}, tour()),
    parade_case("adalora_mlp_options", MLP, {
        "alpha_0": adalora("lin0", "lin1", lora_alpha=0),
        "ignored": adalora("lin0", "lin1", r=3, use_rslora=True, lora_dropout=0.5),
        "init_false": adalora("lin1", init_lora_weights=False, recipe=fresh),
    }, merged=True),
    Case("adalora_mlp_bias_and_saved_module", MLP, {"first": adalora("lin0", bias="all", modules_to_save=["lin1"])},
         [load("first"), forward(), grads(), base_weights(), state_dict("first")]),
    Case("adalora_mlp_two", MLP, {"first": adalora("lin0", "lin1"),
                                  "second": adalora("lin1", init_r=3, recipe=pruned({"lin1": "x.x"}))},
         [load("first"), load("second"), forward(), active("second"), forward(), active("first", "second"), forward(),
          merge(), forward(), base_weights(), disable(), forward(), enable(), forward(), unmerge(), base_weights(),
          scale("first", 0.5), forward(), delete("second"), forward(), merge(safe=True), forward(), base_weights(),
          state_dict("first")]),
]
