"""Writes `tests/fixtures/merged_models.safetensors`: language models with adapters whose merged weights are easily wrong.

    python tests/python/merged_models.py [FILE]

Square weights of GPT-2, which lie as `[in, out]`, next to heads, which lie as `[out, in]`; heads that have the weight of the
embeddings, with adapters that change one of the two; vocabularies that were resized before training; and convolutions with a
dilation. The file holds base models (`base/NAME/…`), and for each case the adapter as PEFT saves it (`CASE/adapter/…`), token
ids (`CASE/ids`) and the logits of base and adapter together (`CASE/logits`), which PEFT computes without merging. Of a convolution
there is the weight that PEFT merges (`CASE/merged`). Of the GGUF files among the fixtures there are the exact merged weights
(`CASE/exact`), of what the package `gguf` reads of the file and PEFT's update, and what is left of them when the package quantizes
them again and reads that (`CASE/requantized`), both in the order of transformers. The metadata hold one text, `json`: the config of each base model (`base/NAME`),
and for each case its base model and its config. Two runs write the same bytes.
"""

import json
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import peft
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

warnings.filterwarnings("ignore")
tensors: dict[str, torch.Tensor] = {}
texts: dict[str, object] = {}
VOCABULARY, NEW_VOCABULARY = 20, 23


def llama(tied: bool):
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=tied, pad_token_id=None)
    return transformers.LlamaForCausalLM(config)


def gpt2(tied: bool):
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=tied,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=1, eos_token_id=2)
    return transformers.GPT2LMHeadModel(config)


BASES = {
    "llama": lambda: llama(False),
    "llama_tied": lambda: llama(True),
    "gpt2": lambda: gpt2(True),
    "gpt2_untied": lambda: gpt2(False),
}


def base(name: str):
    """The base model of that name, the same in every call."""
    torch.manual_seed(sum(map(ord, name)))
    model = BASES[name]().eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.4
    return model


def randomised(model) -> None:
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        if any(mark in name for mark in ("lora_", "ia3_", "modules_to_save", "trainable_tokens_delta")):
            noise = torch.randn(parameter.shape) * 0.3
            parameter.data = parameter.data + noise


def files(name: str, model, **options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, **options)
        with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as file:
            for key in file.keys():
                tensors[f"{name}/adapter/{key}"] = file.get_tensor(key)
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
        for key in ("target_modules", "feedforward_modules", "modules_to_save"):
            if isinstance(config.get(key), list):
                config[key] = sorted(config[key])
        texts[name]["adapter"] = config


def case(name: str, of: str, config, resized: bool = False, **options) -> None:
    model = base(of)
    if resized:
        torch.manual_seed(5)
        model.resize_token_embeddings(NEW_VOCABULARY, mean_resizing=False)
    texts[name] = {"base": of}
    model = peft.get_peft_model(model, config).eval()
    randomised(model)
    last = NEW_VOCABULARY if resized else VOCABULARY
    ids = torch.tensor([[1, 5, last - 1, 3, 7], [2, 9, 4, last - 2, 0]])
    with torch.no_grad():
        tensors[f"{name}/logits"] = model(input_ids=ids).logits.contiguous()
    tensors[f"{name}/ids"] = ids
    files(name, model, **options)


class Dilated(nn.Module):
    def __init__(self):
        super().__init__()
        self.plane = nn.Conv2d(3, 5, 3, stride=2, padding=2, dilation=2)
        self.line = nn.Conv1d(2, 4, 3, padding=2, dilation=2)


def dilated(name: str, **options) -> None:
    torch.manual_seed(3)
    model = Dilated().eval()
    texts[name] = {"base": None}
    for key, tensor in model.state_dict().items():
        tensors[f"{name}/base/{key}"] = tensor.clone()
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=3, target_modules=["plane", "line"], **options))
    randomised(model)
    files(name, model)
    merged = model.merge_and_unload()
    for key, tensor in merged.state_dict().items():
        tensors[f"{name}/merged/{key}"] = tensor.clone()
    torch.manual_seed(4)
    for key, shape in (("plane", (2, 3, 9, 7)), ("line", (2, 2, 9))):
        x = torch.randn(shape)
        tensors[f"{name}/x/{key}"] = x
        with torch.no_grad():
            tensors[f"{name}/y/{key}"] = getattr(merged, key)(x)


GGUF_MODULES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "mlp.down_proj": "ffn_down",
}


def halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of transformers, from that of llama.cpp."""
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def gguf_case(name: str, fixture: str, model_class, config, permutes: bool) -> None:
    torch.manual_seed(21)
    adapted = peft.get_peft_model(model_class(config), peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=sorted(GGUF_MODULES), layers_to_transform=[1], task_type="CAUSAL_LM"))
    randomised(adapted)
    texts[name] = {"base": fixture}
    files(name, adapted)
    file = {tensor.name: tensor for tensor in gguf.GGUFReader(Path(__file__).parent.parent / "fixtures" / fixture).tensors}
    for module, own in GGUF_MODULES.items():
        tensor = file[f"blk.1.{own}.weight"]
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(own) if permutes else None
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weight = halves(weight, heads) if heads else weight
        layer = adapted.get_submodule(f"base_model.model.model.layers.1.{module}")
        exact = weight + layer.get_delta_weight("default").detach().numpy()
        stored = np.ascontiguousarray(pairs(exact, heads) if heads else exact)
        again = gguf.quants.dequantize(gguf.quants.quantize(stored, tensor.tensor_type), tensor.tensor_type).astype(np.float32)
        again = halves(again, heads) if heads else again
        key = f"model.layers.1.{module}.weight"
        tensors[f"{name}/exact/{key}"] = torch.from_numpy(np.ascontiguousarray(exact))
        tensors[f"{name}/requantized/{key}"] = torch.from_numpy(np.ascontiguousarray(again))


def gguf_cases() -> None:
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "pad_token_id": None}
    gguf_case("gguf_llama", "llama_gguf.gguf", transformers.LlamaForCausalLM,
              transformers.LlamaConfig(**sizes, intermediate_size=64), True)
    gguf_case("gguf_qwen2", "qwen2_gguf.gguf", transformers.Qwen2ForCausalLM,
              transformers.Qwen2Config(**sizes, intermediate_size=64), False)
    gguf_case("gguf_qwen3", "qwen3_gguf.gguf", transformers.Qwen3ForCausalLM,
              transformers.Qwen3Config(**sizes, head_dim=16, intermediate_size=32), False)


def lora(targets, **options):
    return peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, task_type="CAUSAL_LM", **options)


def write(path: Path) -> None:
    for name in BASES:
        model = base(name)
        texts[f"base/{name}"] = json.loads(model.config.to_json_string())
        for key, tensor in model.state_dict().items():
            if not (model.config.tie_word_embeddings and key == "lm_head.weight"):
                tensors[f"base/{name}/{key}"] = tensor.contiguous()
    square = ["attn.c_proj", "lm_head"]
    case("square_lora", "gpt2_untied", lora(square))
    case("square_dora", "gpt2_untied", lora(square, use_dora=True))
    case("square_adalora", "gpt2_untied", peft.AdaLoraConfig(
        init_r=3, target_r=2, total_step=10, lora_alpha=4, target_modules=square, task_type="CAUSAL_LM"))
    case("square_ia3", "gpt2_untied", peft.IA3Config(
        target_modules=square, feedforward_modules=["attn.c_proj"], task_type="CAUSAL_LM"))
    for model, embedding, layers in (("llama_tied", "embed_tokens", ["q_proj", "v_proj"]), ("gpt2", "wte", ["c_attn"])):
        case(f"{model}_saved_embedding", model, lora(layers, modules_to_save=[embedding]))
        case(f"{model}_saved_head", model, lora(layers, modules_to_save=["lm_head"]))
        case(f"{model}_head", model, lora([*layers, "lm_head"]))
        case(f"{model}_embedding", model, lora([*layers, embedding]))
        case(f"{model}_both", model, lora([*layers, embedding, "lm_head"]))
        case(f"{model}_tokens", model, lora(layers, trainable_token_indices=[3, 5]))
    case("resized", "llama", lora(["q_proj", "v_proj"]), resized=True, save_embedding_layers=True)
    case("resized_tied", "llama_tied", lora(["q_proj", "v_proj"]), resized=True, save_embedding_layers=True)
    case("resized_gpt2_saved", "gpt2_untied", lora(["c_attn"], modules_to_save=["wte", "lm_head"]), resized=True,
         save_embedding_layers=False)
    dilated("dilated_lora")
    dilated("dilated_dora", use_dora=True)
    gguf_cases()
    versions = {"gguf": version("gguf"), "peft": peft.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    metadata = {"json": json.dumps({**texts, "versions": versions}, sort_keys=True)}
    save_file({key: tensor.contiguous().clone() for key, tensor in sorted(tensors.items())}, path, metadata)


if __name__ == "__main__":
    default = Path(__file__).parent.parent / "fixtures/merged_models.safetensors"
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
