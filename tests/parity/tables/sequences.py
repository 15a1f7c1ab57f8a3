"""Long sequences of operations, where the state left by one determines what the next one does."""

from oracle.spec import (Case, active, adalora, base_weights, delete, disable, dora, enable, fails, forward, grads, ia3,
                         load, lora, merge, mixed, scale, state_dict, train, unmerge, weighted)

from .common import CONV1D, EMB_CONV1D, MLP, bert, blocks, conv2d, gpt2, llama

MLP_THREE = {"first": lora("lin0", "lin1"), "second": lora("lin0", "lin1", r=2, lora_alpha=5),
             "third": lora("lin0", "lin1", r=1)}
CONV1D_THREE = {"first": lora("conv1d", "lin0"), "second": lora("conv1d", r=2), "third": lora("lin0", r=1)}
BLOCKS_THREE = {"first": lora("q_proj", "embed", "down_proj"), "second": lora("q_proj", "v_proj", "lm_head", r=2),
                "third": lora("embed", "up_proj", r=3)}
BERT_THREE = {"first": lora("query", "value"), "second": lora("query", "key", r=2),
              "third": lora("output.dense", "query", r=3)}
LLAMA_THREE = {"first": lora("q_proj", "v_proj"), "second": lora("gate_proj", "v_proj", r=2),
               "third": lora("down_proj", "q_proj", r=3)}
GPT2_THREE = {"first": lora("c_attn", "c_fc", r=2), "second": lora("c_attn", r=1), "third": lora("c_proj", r=3)}


def load_while_merged(first: str, second: str, third: str) -> list:
    return [load(first), load(second), forward(), active(second), merge(), forward(), load(third), forward(),
            disable(), forward(), enable(), forward(), unmerge(), base_weights(), forward(), delete(first), forward(),
            active(third), forward(), state_dict(second)]


def switch_and_merge(first: str, second: str, third: str) -> list:
    return [load(first), merge(), forward(), load(second), active(first, second), forward(), merge(), forward(),
            base_weights(), active(second), forward(), load(third), active(third, second, first), forward(),
            merge(third), forward(), merge(first), forward(), unmerge(), forward(), base_weights(), delete(second),
            forward(), active(first), forward()]


def change_scales(first: str, second: str, third: str) -> list:
    return [load(first), load(second), load(third), scale(first, 2.0), forward(), merge(), forward(), unmerge(),
            scale(first, 0.25), forward(), active(first, third), forward(), scale(third, -1.0), forward(), disable(),
            forward(), enable(), forward(), active(second), forward(), merge(), base_weights(), unmerge(),
            base_weights()]


def come_and_go(first: str, second: str, third: str) -> list:
    return [forward(), load(first), forward(), load(second), delete(first), forward(), load(third),
            active(second, third), forward(), load(first), active(first), forward(), merge(), forward(), unmerge(),
            delete(third), active(first, second), forward(), disable(), delete(second), forward(), enable(), forward(),
            state_dict(first), base_weights()]


SEQUENCES = [
    *(("mlp", MLP, MLP_THREE, sequence)
      for sequence in (load_while_merged, switch_and_merge, change_scales, come_and_go)),
    ("conv1d", CONV1D, CONV1D_THREE, change_scales),
    ("blocks", blocks(), BLOCKS_THREE, change_scales),
    ("bert", bert(), BERT_THREE, load_while_merged),
    ("llama", llama(), LLAMA_THREE, come_and_go),
    ("gpt2", gpt2(), GPT2_THREE, load_while_merged),
]

CASES = [
    *(Case(f"sequences_{subject}_{sequence.__name__}", model, adapters, sequence(*adapters))
      for subject, model, adapters, sequence in SEQUENCES),
    Case("sequences_mlp_train_among_others", MLP, MLP_THREE,
         [load("first"), load("second"), forward(), train("sgd", 0.1, 3), forward(), active("second"), forward(),
          grads(), train("adamw", 0.02, 3), merge(), forward(), base_weights(), unmerge(), active("first"), forward(),
          train("sgd", 0.1, 2), state_dict("first"), state_dict("second"), active("first", "second"), forward(),
          load("third"), mixed("first", "second", "third", "__base__")]),
    Case("sequences_mlp_combine_and_use", MLP,
         {"first": lora("lin0", "lin1"), "second": lora("lin0", "lin1", lora_alpha=2)},
         [load("first"), load("second"), weighted("sum", ["first", "second"], [0.5, 0.5], "cat"), forward(),
          active("sum"), forward(), merge(), forward(), unmerge(), scale("sum", 2.0), forward(), delete("first"),
          forward(), weighted("more", ["sum", "second"], [1.0, -0.5], "cat"), active("more"), forward(),
          delete("sum"), forward(), state_dict("more"), base_weights()]),
    Case("sequences_mlp_errors_between", MLP, MLP_THREE,
         [load("first"), fails(load("first"), "first"), forward(), load("second"), merge("first"),
          fails(delete("first"), "first"), forward(), fails(mixed("first", "second", "first", "second")),
          unmerge(), fails(active("fourth"), "fourth"), forward(), active("second"), fails(delete("fourth"), "fourth"),
          forward(), delete("first"), fails(active("first"), "first"), forward(), load("third"), load("first"),
          active("first"), forward(), base_weights()]),
    Case("sequences_mlp_dora_and_lora", MLP, {"first": dora("lin0", "lin1"), "second": lora("lin0", "lin1"),
                                              "third": dora("lin1", r=2)},
         [load("first"), load("second"), load("third"), active("second", "first"), forward(), merge("second"),
          forward(), merge("first"), forward(), base_weights(), unmerge(), base_weights(),
          active("third", "first", "second"), forward(), merge(), forward(), disable(), forward(), enable(), forward(),
          unmerge(), delete("first"), forward(), active("third"), grads(), forward()]),
    Case("sequences_mlp_saved_modules", MLP,
         {"first": lora("lin0", modules_to_save=["lin1"]), "second": lora("lin0"),
          "third": lora("lin0", modules_to_save=["lin1"], r=2)},
         [load("first"), load("second"), load("third"), forward(), active("third"), forward(), grads(), merge(),
          forward(), base_weights(), unmerge(), state_dict("third"), active("second"), forward(),
          active("second", "first"), forward(), disable(), forward(), enable(), active("first"), forward(),
          delete("third"), forward(), state_dict("first"), state_dict("second")]),
    Case("sequences_conv2d", conv2d(), {"first": lora("conv2d"), "second": lora("conv2d", "lin0", r=2),
                                        "third": dora("conv2d", r=1)},
         [load("first"), load("second"), merge(), forward(), active("second", "first"), forward(), load("third"),
          active("third", "second"), forward(), merge(), forward(), unmerge(), base_weights(), delete("second"),
          forward()]),
    Case("sequences_emb_conv1d", EMB_CONV1D, {"first": lora("emb", "conv1d"), "second": dora("emb", "lin0"),
                                              "third": lora("conv1d", r=2)},
         [load("first"), load("second"), load("third"), active("second", "third"), forward(), merge(), forward(),
          disable(), forward(), enable(), unmerge(), forward(), active("first"), grads(), forward(),
          weighted("sum", ["first"], [0.5], "linear"), active("sum"), forward()]),
    Case("sequences_ia3_blocks", blocks(),
         {"first": ia3("k_proj", "down_proj", feedforward=["down_proj"]), "second": ia3("v_proj", "lm_head"),
          "third": ia3("k_proj", "up_proj")},
         [load("first"), load("second"), active("first", "second"), forward(), merge(), forward(), load("third"),
          disable(), forward(), enable(), forward(), unmerge(), base_weights(), active("third"), forward(), grads(),
          delete("first"), forward(), merge(), base_weights()]),
    Case("sequences_adalora_mlp", MLP, {"first": adalora("lin0", "lin1", tinit=1, tfinal=2),
                                        "second": adalora("lin0", lora_alpha=2)},
         [load("first"), load("second"), train("sgd", 0.05, 10), forward(), merge(), forward(), unmerge(),
          active("second"), forward(), active("first", "second"), merge(), forward(), base_weights(), unmerge(),
          delete("second"), forward(), state_dict("first")]),
]
