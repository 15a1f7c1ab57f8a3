"""Writes `tests/fixtures/gguf_adapters`: adapters in llama.cpp's format, written with the package `gguf`.

    python tests/python/gguf_adapters.py

The base model is `tests/fixtures/mlx/base`. `merged.safetensors` has the weights with the update added, computed before anything was
permuted. `permute` is what llama.cpp's converters do to the rows of queries and keys.
"""

import importlib.metadata
import pathlib

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
FOLDER = FIXTURES / "gguf_adapters"

MODULES = {
    "model.layers.0.self_attn.q_proj": ("blk.0.attn_q", 4),
    "model.layers.0.self_attn.k_proj": ("blk.0.attn_k", 2),
    "model.layers.1.self_attn.v_proj": ("blk.1.attn_v", None),
    "model.layers.1.self_attn.o_proj": ("blk.1.attn_output", None),
    "model.layers.1.mlp.gate_proj": ("blk.1.ffn_gate", None),
    "model.layers.0.mlp.down_proj": ("blk.0.ffn_down", None),
    "model.embed_tokens": ("token_embd", None),
    "lm_head": ("output", None),
}


def permute(weights, heads):
    rows = weights.shape[0]
    return weights.reshape(heads, 2, rows // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def write(name, alpha, modules=MODULES, architecture="llama", kind="adapter", adapter="lora", half=False, extra=()):
    random = np.random.default_rng(len(name))
    base = load_file(FIXTURES / "mlx" / "base" / "model.safetensors")
    writer = gguf.GGUFWriter(FOLDER / f"{name}.gguf", architecture)
    writer.add_string("general.type", kind)
    if adapter is not None:
        writer.add_string("adapter.type", adapter)
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    for key in extra:
        writer.add_uint32(key, 1)
    merged = {}
    for number, (module, (weight, heads)) in enumerate(modules.items()):
        own = base[f"{module}.weight"]
        rank = 2 + number % 2
        a = random.normal(size=(rank, own.shape[1])).astype(np.float32)
        b = random.normal(size=(own.shape[0], rank)).astype(np.float32) * 0.2
        if module == "model.embed_tokens":
            # PEFT's factors of an embedding are those of the transposed weight.
            a = random.normal(size=(rank, own.shape[0])).astype(np.float32)
            b = random.normal(size=(own.shape[1], rank)).astype(np.float32) * 0.2
        if half:
            a, b = a.astype(np.float16), b.astype(np.float16)
        scale = np.float32(alpha / rank if alpha else 1.0)
        update = b.astype(np.float32) @ a.astype(np.float32)
        merged[f"{module}.weight"] = own + scale * (update.T if module == "model.embed_tokens" else update)
        stored_a = np.ascontiguousarray(a.T) if module == "model.embed_tokens" else a
        stored_b = b if heads is None else permute(b, heads)
        writer.add_tensor(f"{weight}.weight.lora_a", stored_a)
        writer.add_tensor(f"{weight}.weight.lora_b", stored_b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return merged


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, alpha, half in [("alpha", 5.0, False), ("alpha_of_zero", 0.0, False), ("no_alpha", None, False), ("half", 4.0, True)]:
        save_file(write(name, alpha, half=half), FOLDER / f"{name}.safetensors")
    few = {"model.layers.1.self_attn.v_proj": ("blk.1.attn_v", None)}
    save_file(write("only_v", 4.0, few), FOLDER / "only_v.safetensors")
    write("of_qwen2", 4.0, few, architecture="qwen2")
    write("a_model", 4.0, few, kind="model")
    write("control_vector", None, few, adapter="controlvector")
    write("no_type", None, few, adapter=None)
    write("unknown_weight", 4.0, {"model.layers.1.self_attn.v_proj": ("blk.1.attn_x", None)})
    write("unknown_architecture", 4.0, few, architecture="mamba")
    write("invocation", 4.0, few, extra=["adapter.alora.invocation_tokens"])
    print("gguf", importlib.metadata.version("gguf"))
