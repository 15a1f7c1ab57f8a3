"""Writes `tests/fixtures/gguf_names.txt`: what the package `gguf` calls the weights of models.

    python tests/python/gguf_names.py
"""

import importlib.metadata
import pathlib

import gguf

BLOCK = [
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj", "self_attn.o_proj", "self_attn.dense",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.gate_up_proj", "mlp.fc1", "mlp.fc2", "mlp.c_fc", "mlp.c_proj",
    "block_sparse_moe.gate", "mlp.gate", "mlp.shared_expert_gate", "mlp.shared_expert.gate_proj",
    "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj",
]
NAMES = ["llama", "granite", "smollm3", "qwen2", "qwen3", "qwen2moe", "qwen3moe", "gemma", "gemma2", "gemma3", "phi2", "phi3",
         "starcoder2", "stablelm", "olmo2", "command-r", "seed_oss"]

if __name__ == "__main__":
    by_name = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    lines = [f"# gguf {importlib.metadata.version('gguf')}"]
    for name in NAMES:
        names = gguf.get_tensor_name_map(by_name[name], 2)
        for path in [f"model.layers.1.{module}" for module in BLOCK] + ["model.embed_tokens", "lm_head"]:
            found = names.get_name(path)
            if found is not None:
                lines.append(f"{name} {path} {found}")
    target = pathlib.Path(__file__).parents[1] / "fixtures" / "gguf_names.txt"
    target.write_text("\n".join(lines) + "\n")
