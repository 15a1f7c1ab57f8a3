"""Writes `tests/fixtures/experts`: an adapter on the single experts of a mixture, what PEFT makes of it, and the merged weights.

    python tests/python/expert_adapters.py

`base` is a tiny Mixtral as transformers 5 has it in memory, with fused experts. `single` is an adapter of the time when each expert
had layers of its own, `converted` the same as PEFT saves it after it has converted it, and `merged.safetensors` has the weights that
PEFT's `merge_and_unload` changes. `router` and `merged_router.safetensors` are the same with an adapter on the router.

`mixtral_saved` and `qwen3_moe_saved` are models as transformers saves them, with the layers of each expert by themselves. The adapters
`mixtral_fused` and `qwen3_moe_fused` are on the parameters of all experts, as PEFT trains them today; `…_merged.safetensors` has what
changes in the saved model when PEFT has merged them.
"""

import json
import pathlib
import tempfile

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

FOLDER = pathlib.Path(__file__).parents[1] / "fixtures" / "experts"
EXPERTS, SIZE, INNER, RANK = 4, 8, 6, 2


def model():
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=10, hidden_size=SIZE, intermediate_size=INNER, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=EXPERTS, num_experts_per_tok=2, max_position_embeddings=16,
        tie_word_embeddings=False,
    )
    made = transformers.MixtralForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made


def qwen3_moe():
    torch.manual_seed(1)
    config = transformers.Qwen3MoeConfig(
        vocab_size=10, hidden_size=SIZE, intermediate_size=INNER, moe_intermediate_size=INNER, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4, num_experts=3, num_experts_per_tok=2,
        decoder_sparse_step=1, max_position_embeddings=16, tie_word_embeddings=False,
    )
    made = transformers.Qwen3MoeForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made


def fused(name, made, config):
    """An adapter on the parameters of all experts, and what it changes in the model as transformers saves it."""
    saved = FOLDER / f"{name}_saved"
    made.save_pretrained(saved)
    (saved / "generation_config.json").unlink(missing_ok=True)
    before = load_file(saved / "model.safetensors")
    adapted = peft.get_peft_model(made, config)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    adapted.save_pretrained(FOLDER / f"{name}_fused")
    (FOLDER / f"{name}_fused" / "README.md").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        adapted.merge_and_unload().save_pretrained(folder)
        after = load_file(pathlib.Path(folder) / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {key: value.contiguous() for key, value in after.items() if not torch.equal(value, before[key])}
    save_file(changed, FOLDER / f"{name}_merged.safetensors")
    print(name, len(changed), "of", len(before), sorted(changed)[:3])


def merged_with(base, name, target):
    own = {key: value.detach().clone() for key, value in base.state_dict().items()}
    merged = peft.PeftModel.from_pretrained(base, FOLDER / name).merge_and_unload().state_dict()
    changed = {key: value.detach().clone() for key, value in merged.items() if not torch.equal(value, own[key])}
    save_file(changed, FOLDER / target)
    print(name, sorted(changed))


def single(router=False):
    generator = torch.Generator().manual_seed(3)

    def random(*shape):
        return torch.randn(*shape, generator=generator) * 0.3

    tensors = {}

    def add(path, inputs, outputs):
        tensors[f"base_model.model.model.layers.0.{path}.lora_A.weight"] = random(RANK, inputs)
        tensors[f"base_model.model.model.layers.0.{path}.lora_B.weight"] = random(outputs, RANK)

    add("self_attn.q_proj", SIZE, SIZE)
    for expert in range(EXPERTS):
        add(f"block_sparse_moe.experts.{expert}.w1", SIZE, INNER)
        add(f"block_sparse_moe.experts.{expert}.w3", SIZE, INNER)
        add(f"block_sparse_moe.experts.{expert}.w2", INNER, SIZE)
    if router:
        add("block_sparse_moe.gate", SIZE, EXPERTS)
    return tensors


if __name__ == "__main__":
    base = model()
    (FOLDER / "base").mkdir(parents=True, exist_ok=True)
    (FOLDER / "single").mkdir(parents=True, exist_ok=True)
    own = {name: value.detach().clone() for name, value in base.state_dict().items()}
    save_file(own, FOLDER / "base" / "model.safetensors")
    config = {"model_type": "mixtral", "num_local_experts": EXPERTS, "hidden_size": SIZE, "tie_word_embeddings": False}
    (FOLDER / "base" / "config.json").write_text(json.dumps(config) + "\n")
    save_file(single(), FOLDER / "single" / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": ["q_proj", "w1", "w2", "w3"],
        "lora_dropout": 0.0, "task_type": "CAUSAL_LM", "bias": "none",
    }
    (FOLDER / "single" / "adapter_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    adapted = peft.PeftModel.from_pretrained(base, FOLDER / "single")
    adapted.save_pretrained(FOLDER / "converted")
    for extra in (FOLDER / "converted").glob("README.md"):
        extra.unlink()
    merged = adapted.merge_and_unload().state_dict()
    changed = {name: value.detach().clone() for name, value in merged.items() if not torch.equal(value, own[name])}
    assert len(changed) == 3, changed.keys()
    save_file(changed, FOLDER / "merged.safetensors")
    print("peft", peft.__version__, "transformers", transformers.__version__, sorted(changed))
    print(sorted(load_file(FOLDER / "converted" / "adapter_model.safetensors")))
    (FOLDER / "router").mkdir(parents=True, exist_ok=True)
    save_file(single(router=True), FOLDER / "router" / "adapter_model.safetensors")
    settings["target_modules"].append("gate")
    (FOLDER / "router" / "adapter_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    merged_with(model(), "router", "merged_router.safetensors")
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    fused("mixtral", model(), peft.LoraConfig(
        r=2, lora_alpha=5, target_modules=["q_proj"], target_parameters=[*experts, "mlp.gate.weight"],
        rank_pattern={"experts.gate_up_proj": 3}, alpha_pattern={"experts.down_proj": 1},
    ))
    fused("qwen3_moe", qwen3_moe(), peft.LoraConfig(
        r=2, lora_alpha=5, use_rslora=True, target_modules=["q_proj"], target_parameters=experts,
    ))
