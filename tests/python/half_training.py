"""Writes what PyTorch and PEFT compute in 20 steps of AdamW on a tiny Llama in bf16, and in float64 from the same numbers.

    python tests/python/half_training.py

`tests/fixtures/half_training/` is a model folder whose weights are in bf16, with a fresh LoRA adapter in `adapter`, and
`run.safetensors`: the tokens, and for `bf16` and `f64` the loss before each step (`NAME.losses`) and the adapter after the
last (`NAME.KEY`). The base, its activations and its output are in bf16, the adapter and the loss in f32. The metadata name the
versions.
"""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).parents[1] / "fixtures" / "half_training"
SIZES = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 64, "max_position_embeddings": 64, "tie_word_embeddings": True}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEPS, RATE = 20, 5e-3


def build() -> LlamaForCausalLM:
    config = LlamaConfig(**SIZES)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.9 / parameter.shape[1] ** 0.5)
    return model.to(torch.bfloat16).eval()


def train(model: LlamaForCausalLM, tokens: Tensor) -> dict[str, Tensor]:
    peft = PeftModel.from_pretrained(model, str(OUT / "adapter"), is_trainable=True).eval()
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=RATE)
    losses = []
    for _ in range(STEPS):
        logits = peft(input_ids=tokens).logits
        # As transformers does it: half precision is widened.
        wide = logits if logits.dtype == torch.float64 else logits.float()
        loss = torch.nn.functional.cross_entropy(wide[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        losses.append(loss.detach())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"losses": torch.stack(losses)} | get_peft_model_state_dict(peft)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    model = build()
    tokens = torch.randint(0, SIZES["vocab_size"], (4, 24))
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)
    peft = get_peft_model(build().to(torch.bfloat16), config)
    peft.save_pretrained(OUT / "adapter")
    (OUT / "adapter" / "README.md").unlink()
    model.save_pretrained(OUT)
    (OUT / "generation_config.json").unlink(missing_ok=True)

    tensors = {"tokens": tokens}
    for name, dtype in (("bf16", torch.bfloat16), ("f64", torch.float64)):
        copied = LlamaForCausalLM.from_pretrained(OUT, dtype=torch.bfloat16, attn_implementation="eager").to(dtype)
        tensors |= {f"{name}.{key}": tensor.float().contiguous() for key, tensor in train(copied, tokens).items()}
    metadata = {package: version(package) for package in ("torch", "peft", "transformers")}
    save_file(tensors, OUT / "run.safetensors", metadata)
    for file in OUT.rglob("*.safetensors"):
        file.chmod(0o644)
    print("losses in bf16", tensors["bf16.losses"].tolist())
    print("off from float64", (tensors["bf16.losses"] - tensors["f64.losses"]).abs().max().item())


if __name__ == "__main__":
    main()
