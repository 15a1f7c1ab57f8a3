"""Writes `tests/fixtures/mlx`: adapters that mlx-lm made of a tiny Llama and a tiny mixture, with the weights that it fuses.

    pip install "mlx[cpu]" mlx-lm
    python tests/python/mlx_adapters.py

Each folder has what `mlx_lm.lora` writes, and `fused.safetensors` with the weights that `mlx_lm.fuse` would give under their names
in the base model. `base` and `moe_base` are HuggingFace folders.
"""

import importlib.metadata
import json
import pathlib

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama, qwen3_moe
from mlx_lm.tuner.utils import linear_to_lora_layers

FOLDER = pathlib.Path(__file__).parents[1] / "fixtures" / "mlx"

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 20,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 32, "tie_word_embeddings": False,
}
MOE = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 10,
    "num_experts": 3, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 4,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 32, "tie_word_embeddings": False,
    "norm_topk_prob": True,
}


def randomised(model, seed):
    random = np.random.default_rng(seed)
    weights = [
        (name, mx.array(random.normal(size=value.shape).astype(np.float32) * 0.3))
        for name, value in sorted(tree_flatten(model.parameters()))
    ]
    model.load_weights(weights)
    return model


def llama_model():
    return randomised(llama.Model(llama.ModelArgs.from_dict(LLAMA)), 1)


def moe_model():
    return randomised(qwen3_moe.Model(qwen3_moe.ModelArgs.from_dict(MOE)), 2)


def of_transformers(weights):
    """mlx-lm's names and shapes of a mixture as those of transformers with fused experts."""
    weights, fused = dict(weights), {}
    for name in list(weights):
        if ".switch_mlp." in name:
            fused[name] = weights.pop(name)
    for name, value in fused.items():
        experts = name.split(".switch_mlp.")[0] + ".experts."
        if "down_proj" in name:
            weights[experts + "down_proj"] = value
        elif "gate_proj" in name:
            weights[experts + "gate_up_proj"] = mx.concatenate([value, fused[name.replace("gate_proj", "up_proj")]], axis=1)
    return weights


def save_base(folder, config, model):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    mx.save_safetensors(str(folder / "model.safetensors"), of_transformers(tree_flatten(model.parameters())))


def adapter(name, model, settings, kind="lora", layers=2):
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    before = of_transformers(tree_flatten(model.parameters()))
    random = np.random.default_rng(len(name))

    def moved(value, size):
        return value + mx.array(random.normal(size=value.shape).astype(np.float32) * size)

    model.freeze()
    if kind == "full":
        for layer in model.layers[-layers:]:
            layer.unfreeze()
    else:
        linear_to_lora_layers(model, layers, settings, use_dora=kind == "dora")
    trained = [(key, moved(value, 0.2)) for key, value in tree_flatten(model.trainable_parameters())]
    model.load_weights(trained, strict=False)
    config = {
        "adapter_path": "adapters", "batch_size": 4, "fine_tune_type": kind, "iters": 100, "learning_rate": 1e-05,
        "lora_parameters": settings, "model": "acme/tiny", "num_layers": layers, "seed": 0, "train": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=4))
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    fused = [(path, module.fuse()) for path, module in model.named_modules() if hasattr(module, "fuse")]
    after = dict(before)
    weights = dict(tree_flatten(model.parameters())) if kind == "full" else {}
    for path, module in fused:
        weights.update({f"{path}.{key}": value for key, value in tree_flatten(module.parameters())})
    if any(".switch_mlp." in key for key in weights):
        whole = {key.replace(".linear.", "."): value for key, value in tree_flatten(model.parameters())}
        weights = {**{key: value for key, value in whole.items() if ".switch_mlp." in key and "lora" not in key}, **weights}
        weights = of_transformers(weights)
    for key, value in weights.items():
        if key in after and not mx.array_equal(before[key], value):
            after[key] = value
    changed = {key: value for key, value in after.items() if not mx.array_equal(before[key], value)}
    assert changed, name
    mx.save_safetensors(str(folder / "fused.safetensors"), changed)


if __name__ == "__main__":
    save_base(FOLDER / "base", LLAMA, llama_model())
    save_base(FOLDER / "moe_base", MOE, moe_model())
    settings = {"rank": 3, "dropout": 0.0, "scale": 1.7, "keys": ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]}
    adapter("lora", llama_model(), settings, layers=1)
    ends = {**settings, "keys": ["self_attn.k_proj", "model.embed_tokens", "lm_head"], "rank": 2, "scale": 20.0}
    adapter("ends", llama_model(), ends)
    adapter("dora", llama_model(), settings, "dora")
    adapter("full", llama_model(), settings, "full", 1)
    experts = ["mlp.switch_mlp.gate_proj", "mlp.switch_mlp.up_proj", "mlp.switch_mlp.down_proj", "mlp.gate", "self_attn.q_proj"]
    adapter("experts", moe_model(), {**settings, "keys": experts, "rank": 2})
    print("mlx", importlib.metadata.version("mlx"), "mlx-lm", importlib.metadata.version("mlx-lm"))
