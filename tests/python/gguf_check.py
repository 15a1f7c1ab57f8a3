"""Reads a GGUF adapter with the published `gguf` package and compares it with the PEFT adapter it was made from.

    python tests/python/gguf_check.py FILE.gguf ADAPTER_DIR CONFIG.json

For every weight, llama.cpp's update (alpha / rank of the tensor, times B·A) has to be PEFT's (the layer's own scaling, times
B·A) within 1e-5, under the name that gguf's own table gives, with the rows of queries and keys as llama.cpp orders them.
For plain LoRA, rsLoRA and LoRA with patterns, on the Llama family.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
#: Architectures whose rotary embedding rotates neighbouring values.
PAIRED = {"llama", "mistral"}
TOLERANCE = 1e-5


def main() -> int:
    file, adapter, model = (Path(argument) for argument in sys.argv[1:4])
    reader = gguf.GGUFReader(file)
    model_config = json.loads(model.read_text())
    check_metadata(reader, model_config)
    tensors = {tensor.name: np.asarray(tensor.data, dtype=np.float64) for tensor in reader.tensors}
    expected = peft_updates(adapter)
    names = {}
    for path in expected:
        names[path] = gguf_name(path, model_config)
    wanted = {f"{name}.{end}" for name in names.values() for end in ("lora_a", "lora_b")}
    if wanted != set(tensors):
        fail(f"tensors differ: {sorted(wanted ^ set(tensors))}")
    alpha = field(reader, "adapter.lora.alpha")
    for path, update in expected.items():
        a, b = tensors[f"{names[path]}.lora_a"], tensors[f"{names[path]}.lora_b"]
        if path.endswith("embed_tokens"):
            # llama.cpp looks up rows of A.
            found = (b @ a.T).T
        else:
            found = b @ a
        found = found * (alpha / b.shape[1])
        heads = head_count(path, model_config)
        if heads is not None:
            update = permute(update, heads)
        error = np.abs(found - update).max()
        if not error <= TOLERANCE * max(1.0, np.abs(update).max()):
            fail(f"{path} is off by {error}")
    print(f"{len(expected)} weights agree")
    return 0


def fail(reason: str) -> None:
    print(reason, file=sys.stderr)
    sys.exit(1)


def field(reader: gguf.GGUFReader, name: str):
    found = reader.get_field(name)
    if found is None:
        fail(f"there is no `{name}`")
    return found.contents()


def check_metadata(reader: gguf.GGUFReader, model_config: dict) -> None:
    architecture = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[model_config["model_type"]]]
    wanted = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": architecture}
    for name, value in wanted.items():
        if field(reader, name) != value:
            fail(f"`{name}` is {field(reader, name)!r}, not {value!r}")


def gguf_name(path: str, model_config: dict) -> str:
    blocks = model_config.get("num_hidden_layers", 128)
    table = gguf.get_tensor_name_map(ARCHITECTURES[model_config["model_type"]], blocks)
    name = table.get_name(f"{path}.weight", try_suffixes=(".weight",))
    if name is None:
        fail(f"gguf knows no name for `{path}`")
    return name


def head_count(path: str, model_config: dict) -> int | None:
    if model_config["model_type"] not in PAIRED:
        return None
    heads = model_config["num_attention_heads"]
    if path.endswith("q_proj"):
        return heads
    if path.endswith("k_proj"):
        return model_config.get("num_key_value_heads") or heads
    return None


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Halves of each head as neighbouring pairs, which is what llama.cpp's converter does to the base model."""
    rows = weight.shape[0]
    halves = weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def peft_updates(adapter: Path) -> dict[str, np.ndarray]:
    """The update of each weight by its path in the model, as PEFT computes it."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    updates = {}
    for key, tensor in tensors.items():
        path = re.sub(r"^base_model\.model\.", "", key)
        if path.endswith(".lora_A.weight"):
            path = path.removesuffix(".lora_A.weight")
            a, b = tensor, tensors[key.replace("lora_A", "lora_B")]
            update = b.astype(np.float64) @ a.astype(np.float64)
        elif path.endswith(".lora_embedding_A"):
            path = path.removesuffix(".lora_embedding_A")
            a, b = tensor, tensors[key.replace("lora_embedding_A", "lora_embedding_B")]
            update = (b.astype(np.float64) @ a.astype(np.float64)).T
        else:
            continue
        updates[path] = update * scaling(config, path, a.shape[0])
    return updates


def scaling(config: dict, path: str, rank: int) -> float:
    alpha = pattern(config.get("alpha_pattern") or {}, path, config["lora_alpha"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def pattern(patterns: dict, path: str, default: float) -> float:
    """PEFT's choice: the first pattern that matches the whole path, or its end after a dot."""
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


if __name__ == "__main__":
    sys.exit(main())
