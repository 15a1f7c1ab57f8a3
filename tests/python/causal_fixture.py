"""Writes what transformers computes on tiny random language models.

    python tests/python/causal_fixture.py

`tests/fixtures/causal.safetensors` holds, for each model NAME: its `config.json` as bytes (`NAME.config`), its weights
in half precision (`NAME.weights.…`), token ids with a mask of padding on the right, the logits, the loss for labels of
which some are ignored, and a greedy continuation of the first row. `tests/fixtures/NAME.gguf` are models in the layout
of llama.cpp, whose ids and logits are in the same file under their names. The metadata name the versions.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import (GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig,
                          MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 128}
#: Covers all three ranges of wavelengths at the sizes of these heads.
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64, "rope_theta": 10000.0}
PROMPT, NEW = 6, 12

MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SMALL, rope_parameters=LLAMA3, tie_word_embeddings=True)),
    "biased": (LlamaForCausalLM, LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, rope_parameters={
        "rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0})),
    "mistral": (MistralForCausalLM, MistralConfig(**SMALL, head_dim=16, sliding_window=32)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SMALL, tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=True)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=40, n_positions=32, n_embd=32, n_layer=2, n_head=4, n_inner=64,
                                         bos_token_id=0, eos_token_id=0, scale_attn_by_inverse_layer_idx=True)),
}
GGUF_MODELS = {
    "llama_gguf": ("llama", gguf.GGMLQuantizationType.Q8_0, LlamaForCausalLM, LlamaConfig(
        **SMALL | {"intermediate_size": 64}, rope_parameters=LLAMA3, tie_word_embeddings=True)),
    "qwen2_gguf": ("qwen2", gguf.GGMLQuantizationType.Q4_0, Qwen2ForCausalLM, Qwen2Config(
        **SMALL | {"intermediate_size": 64}, tie_word_embeddings=True)),
    "qwen3_gguf": ("qwen3", gguf.GGMLQuantizationType.F16, Qwen3ForCausalLM, Qwen3Config(**SMALL, head_dim=16)),
}
GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


@torch.no_grad()
def build(model_class: type, config: transformers.PreTrainedConfig) -> torch.nn.Module:
    """A model with random weights that half precision holds exactly, large enough for errors to show."""
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.normal_(0.0, 0.2)
            if name.endswith("weight"):
                parameter.add_(1.0)
        else:
            embeds = any(word in name for word in ("embed", "wte", "wpe"))
            parameter.normal_(0.0, 0.3 if embeds else 2.0 / parameter.shape[-1] ** 0.5)
        parameter.copy_(parameter.half().float())
    return model


def old_form(name: str, config: dict) -> dict:
    """The config as transformers wrote it before version 5, for two of the models."""
    if name not in ("biased", "mistral"):
        return config
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind} | rope
    return config


@torch.no_grad()
def outputs(model: torch.nn.Module) -> dict[str, Tensor]:
    ids = torch.randint(1, 40, (2, 12))
    mask = torch.ones(2, 12)
    mask[1, 8:] = 0
    labels = ids.clone()
    labels[mask == 0] = -100
    labels[0, 3:5] = -100
    greedy = ids[:1, :PROMPT]
    for _ in range(NEW):
        logits = model(greedy).logits[0, -1]
        first, second = logits.topk(2).values
        if first - second < 1e-2:
            raise ValueError("a greedy choice is too close; use another seed")
        greedy = torch.cat([greedy, logits.argmax().reshape(1, 1)], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "logits": model(ids, attention_mask=mask).logits,
        "labels": labels,
        # Tokens do not see the padding on their right, so the mask does not affect the loss.
        "loss": model(ids, labels=labels).loss.reshape(1),
        "greedy": greedy[0, PROMPT:],
    }


def permuted(weight: Tensor, heads: int) -> Tensor:
    """The rows of a query or key projection as llama.cpp's converter orders them: rotated pairs side by side."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def rope_factors(config: LlamaConfig) -> np.ndarray:
    """What llama.cpp divides each frequency by."""
    plain = 1.0 / (LLAMA3["rope_theta"] ** (torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim))
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config)
    return (plain / scaled).numpy()


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        number, _, rest = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{GGUF_NAMES[rest]}.{kind}"
    return f"{GGUF_NAMES[stem]}.{kind}"


@torch.no_grad()
def write_gguf(path: Path, arch: str, kind: gguf.GGMLQuantizationType, model: torch.nn.Module) -> None:
    """Writes a model, and sets its weights to those that the file holds after rounding."""
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if arch == "llama":
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_tensor("rope_freqs.weight", rope_factors(config).astype(np.float32))
    if arch == "qwen3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    for name, parameter in model.named_parameters():
        value = parameter
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if arch == "llama" and heads is not None:
            value = permuted(value, heads)
        if parameter.dim() == 1:
            writer.add_tensor(gguf_name(name), value.numpy())
            continue
        packed = gguf.quants.quantize(value.numpy(), kind)
        writer.add_tensor(gguf_name(name), packed, raw_dtype=kind)
        rounded = torch.from_numpy(gguf.quants.dequantize(packed, kind).reshape(value.shape).astype(np.float32))
        if arch == "llama" and heads is not None:
            # The inverse: `permuted` with the two middle dimensions swapped.
            half = rounded.shape[0] // heads // 2
            rounded = rounded.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rounded.shape)
        parameter.copy_(rounded)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    torch.set_num_threads(1)
    tensors: dict[str, Tensor] = {}
    for seed, (name, (model_class, config)) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        model = build(model_class, config)
        text = json.dumps(old_form(name, json.loads(config.to_json_string(use_diff=True))))
        tensors[f"{name}.config"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
        tensors |= {f"{name}.weights.{key}": value.detach().half() for key, value in model.named_parameters()}
        tensors |= {f"{name}.{key}": value for key, value in outputs(model).items()}
    for seed, (name, (arch, kind, model_class, config)) in enumerate(GGUF_MODELS.items(), start=100):
        torch.manual_seed(seed)
        model = build(model_class, config)
        write_gguf(FIXTURES / f"{name}.gguf", arch, kind, model)
        tensors |= {f"{name}.{key}": value for key, value in outputs(model).items()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "gguf": version("gguf")}
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    save_file(tensors, FIXTURES / "causal.safetensors", metadata=versions)


if __name__ == "__main__":
    main()
