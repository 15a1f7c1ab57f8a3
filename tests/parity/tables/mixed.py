"""One adapter for each row of a batch."""

from oracle.spec import (Case, active, delete, disable, enable, forward, load, lora, mixed, scale)

from .common import CONV1D, EMB_CONV1D, MLP, bert, blocks, conv2d, gpt2, llama

BASE = "__base__"
LOAD = [load("first"), load("second")]

MODELS = [
    ("blocks", blocks(), lora("q_proj", "down_proj", "embed"), lora("q_proj", "lm_head", "embed")),
    ("emb_conv1d", EMB_CONV1D, lora("emb", "conv1d"), lora("conv1d", "lin0")),
    ("conv1d", CONV1D, lora("conv1d"), lora("conv1d", "lin0")),
    ("conv2d", conv2d(), lora("conv2d"), lora("conv2d", "lin0")),
    ("bert", bert(), lora("query", "value"), lora("dense", "word_embeddings")),
    ("llama", llama(), lora("q_proj", "v_proj"), lora("k_proj", "gate_proj")),
    ("gpt2", gpt2(), lora("c_attn"), lora("c_attn", "c_fc", "wte")),
]


def rows(batch: int, *pattern: str) -> tuple[str, ...]:
    """The pattern, repeated until it fills the batch."""
    return tuple(pattern[row % len(pattern)] for row in range(batch))


CASES = [
    *(Case(f"mixed_{name}", model, {"first": first, "second": second},
           [*LOAD, mixed(*rows(model.batch, "first", "second")), mixed(*rows(model.batch, BASE, "second", "first")),
            mixed(*rows(model.batch, "second", BASE)), forward(), active("second"),
            mixed(*rows(model.batch, "first", "second")), forward()])
      for name, model, first, second in MODELS),
    Case("mixed_mlp", MLP, {"first": lora("lin0"), "second": lora("lin1"), "third": lora("lin0", "lin1", r=1)},
         [*LOAD, load("third"), mixed("third", BASE, "first", "second"), mixed("first", "first", "first", "first"),
          mixed(BASE, BASE, BASE, BASE), forward(), disable(), forward(), enable(),
          mixed("third", BASE, "first", "second"), delete("second"), mixed("third", "third", BASE, "first"),
          scale("third", -2.0), mixed("third", BASE, "first", "third"), forward()]),
    Case("mixed_mlp_options", MLP,
         {"first": lora("lin0", "lin1", use_rslora=True, lora_bias=True),
          "second": lora("lin0", "lin1", rank_pattern={"lin0": 1}, alpha_pattern={"lin1": 2})},
         [*LOAD, mixed("first", "second", "second", BASE), active("first", "second"), forward(),
          mixed("first", "second", "first", "second")]),
    Case("mixed_mlp_saved_modules", MLP,
         {"first": lora("lin0", modules_to_save=["lin1"]), "second": lora("lin0", modules_to_save=["lin1"])},
         [*LOAD, mixed("first", "second", BASE, "first"), forward()]),
]
