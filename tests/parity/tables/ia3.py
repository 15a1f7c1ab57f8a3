"""IA3: its two roles on every kind of layer, several adapters, merging by multiplication."""

from oracle.adapters import edit_config, fresh
from oracle.spec import (Case, active, base_weights, delete, disable, enable, forward, grads, ia3, load, merge,
                         state_dict, train, unmerge, weighted)

from .common import EMB_CONV1D, MLP, MLP_PLAIN, bert, blocks, conv2d, gpt2, llama, parade_case, tour

SGD, ADAMW = train("sgd", 0.05, 4), train("adamw", 0.02, 4)
LAYERS = [
    ("mlp", MLP, ia3("lin0", "lin1", feedforward=["lin1"]), SGD),
    ("mlp_no_bias", MLP_PLAIN, ia3("lin0", "lin1", feedforward=["lin0"]), train("adamw", 0.02, 4, weight_decay=0.1)),
    ("blocks", blocks(), ia3("k_proj", "v_proj", "down_proj", "lm_head", feedforward=["down_proj", "lm_head"]),
     ADAMW),
    ("emb_conv1d", EMB_CONV1D, ia3("conv1d", "lin0"), ADAMW),
    ("emb_conv1d_feedforward", EMB_CONV1D, ia3("conv1d", "lin0", feedforward=["conv1d", "lin0"]), SGD),
    ("conv2d", conv2d(), ia3("conv2d", "lin0"), ADAMW),
    ("conv2d_feedforward", conv2d(), ia3("conv2d", "lin0", feedforward=["conv2d", "lin0"]), train("sgd", 0.02, 4)),
    # The file names no layers, so the model type decides.
    ("bert", bert(), ia3("key", "value", "output.dense", feedforward=["output.dense"], edits=(
        edit_config(target_modules=None, feedforward_modules=None),)), ADAMW),
    ("llama", llama(), ia3("k_proj", "v_proj", "down_proj", feedforward=["down_proj"]), ADAMW),
    ("gpt2", gpt2(), ia3("c_attn", "mlp.c_proj", feedforward=["mlp.c_proj"]), SGD),
]

#: Ways to say which layers are targets and which of them are feedforward.
ROLES = [
    ("mlp_plain", MLP, {"string": ia3(target_modules="lin0"), "list": ia3("lin0", "lin1")}),
    ("mlp_feedforward", MLP, {"string": ia3(target_modules="lin0", feedforward="lin0"),
                              "list": ia3("lin0", "lin1", feedforward=["lin0", "lin1"])}),
    ("blocks_roles", blocks(2), {
        "regex": ia3(target_modules=r"layers\.\d\.(attn\.k_proj|mlp\..*)", feedforward=r".*\.mlp\.down_proj"),
        "text_ending": ia3(target_modules=".*(v|down)_proj", feedforward=["n_proj"]),
        "exclude": ia3("q_proj", "down_proj", feedforward=["down_proj"], exclude_modules=["layers.1.mlp.down_proj"]),
        "init_false": ia3("up_proj", init_ia3_weights=False, recipe=fresh),
    }),
]
PAIR = {"first": ia3("lin0", "lin1", feedforward=["lin1"]), "second": ia3("lin0", "lin1", feedforward=["lin1"])}

CASES = [
    *(Case(f"ia3_{name}", model, {"first": adapter}, tour(training, weights=not model.kind.startswith("tiny")))
      for name, model, adapter, training in LAYERS),
    *(parade_case(f"ia3_{name}", model, adapters, gradients=True) for name, model, adapters in ROLES),
    Case("ia3_mlp_fresh", MLP, {"first": ia3("lin0", "lin1", feedforward=["lin1"], recipe=fresh)},
         [load("first"), forward(), grads(), train("sgd", 0.1, 4), forward(), state_dict("first")], inert=True),
    Case("ia3_mlp_two", MLP, PAIR,
         [load("first"), load("second"), forward(), active("second"), forward(), grads(), active("first", "second"),
          forward(), merge(safe=True), forward(), base_weights(), disable(), forward(), enable(), forward(), unmerge(),
          base_weights(), forward(), merge("second"), forward(), unmerge(), delete("first"), forward()]),
    Case("ia3_mlp_weighted", MLP, PAIR,
         [load("first"), load("second"), weighted("sum", ["first", "second"], [0.7, 0.3]), forward(), active("sum"),
          forward(), state_dict("sum"), merge(), forward(), base_weights(), unmerge(),
          weighted("difference", ["first", "second"], [2.0, -1.0]), active("difference"), forward(),
          state_dict("difference")]),
    Case("ia3_blocks_weighted_apart", blocks(),
         {"first": ia3("k_proj", "down_proj", feedforward=["down_proj"]), "second": ia3("v_proj", "k_proj")},
         [load("first"), load("second"), weighted("sum", ["first", "second"], [0.5, 0.5]), active("sum"), forward(),
          state_dict("sum"), merge(), base_weights()]),
    Case("ia3_conv2d_two", conv2d(), {"first": ia3("conv2d", "lin0", feedforward=["lin0"]), "second": ia3("conv2d")},
         [load("first"), load("second"), active("first", "second"), forward(), merge(), forward(), base_weights(),
          unmerge(), base_weights(), weighted("sum", ["first", "second"], [1.5, -0.25]), active("sum"), forward(),
          state_dict("sum")]),
]
