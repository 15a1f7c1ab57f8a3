"""Writes `fixtures/field.safetensors` and `fixtures/field.json`: adapters as people have them, with what Python PEFT computes.

    python field_cases.py CASES

`CASES` is a folder of cases that PEFT 0.21.2 wrote after public reports: `base/llama`, and for each case `adapter/` and
`expected.json` (token ids, and the logits of base and adapter). They are taken over as they are. What follows in this file is
written here, by PEFT itself: state dicts of whole models, which have the adapter's name in their keys, of every method, and the
file that PEFT writes by default after the vocabulary was resized.

The tensors file holds every tensor once; the other one says which of them each case has under which key.
"""

import copy
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent.parent / "fixtures"
IDS = torch.tensor([[3, 17, 5, 22, 9, 40, 1, 2], [8, 8, 31, 47, 0, 12, 6, 19]])
NAME = "sql-expert"
TAKEN_OVER = [
    "c01_axolotl_null",
    "c03_default_keys",
    "c13_auto_saved",
    "c29_string_layers_pattern",
    "c42_pattern_nomatch",
    "c46_original_module",
    "c47_ia3_null",
    "o02_trainer_layout",
]

tensors, cases = {}, {}


def store(tensor):
    """The name of a tensor in the file."""
    tensor = tensor.detach().contiguous()
    name = hashlib.sha256(tensor.numpy().tobytes() + str(tuple(tensor.shape)).encode()).hexdigest()[:12]
    tensors[name] = tensor.clone()
    return name


def add(case, config, state, logits=None, ids=IDS.tolist(), **more):
    keys = {key: store(tensor) for key, tensor in sorted(state.items())}
    cases[case] = {"config": config, "keys": keys, **more}
    if logits is not None:
        cases[case].update(ids=ids, logits=store(logits))


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(IDS).logits


def randomise(model):
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2


def take_over(folder):
    for case in TAKEN_OVER:
        expected = json.loads((folder / case / "expected.json").read_text())
        values = torch.tensor(expected["values"]).reshape(expected["shape"])
        adapter = folder / case / "adapter"
        config = json.loads((adapter / "adapter_config.json").read_text())
        add(case, config, load_file(adapter / "adapter_model.safetensors"), values, expected["ids"])
    step = folder / "o02_trainer_layout" / "adapter" / "checkpoint-100"
    add("o02_step", json.loads((step / "adapter_config.json").read_text()), load_file(step / "adapter_model.safetensors"))
    nested = folder / "k01_lora_head_nested"
    expected = json.loads((nested / "xy.json").read_text())
    base = {key: store(tensor) for key, tensor in load_file(nested / "base.safetensors").items()}
    config = json.loads((nested / "adapter" / "adapter_config.json").read_text())
    state = load_file(nested / "adapter" / "adapter_model.safetensors")
    xy = {"base": base, "x": store(torch.tensor(expected["x"])), "y": store(torch.tensor(expected["y"]))}
    add("k01_lora_head_nested", config, state, **xy)
    lfs = (folder / "c07_lfs" / "adapter" / "adapter_model.safetensors").read_text()
    cases["c07_lfs"] = {"text": lfs}


def saved_config(model):
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, selected_adapters=[NAME])
        config = json.loads((Path(folder) / NAME / "adapter_config.json").read_text())
        saved = load_file(Path(folder) / NAME / "adapter_model.safetensors")
    return {**config, "base_model_name_or_path": None}, saved


def whole_states(base):
    """What is the adapter's of `model.state_dict()`, by which trainers that know nothing of PEFT save."""
    common = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
    embedding = {**common, "target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}
    configs = {
        "named_lora": LoraConfig(r=2, **embedding),
        "named_dora": LoraConfig(r=2, use_dora=True, **common),
        "named_lora_bias": LoraConfig(r=2, lora_bias=True, **common),
        "named_tokens": LoraConfig(r=2, trainable_token_indices=[1, 5, 40], **common),
        "named_adalora": AdaLoraConfig(init_r=2, target_r=1, total_step=10, **common),
        "named_ia3": IA3Config(feedforward_modules=[], **common),
        "named_loha": LoHaConfig(r=2, **common),
        "named_lokr": LoKrConfig(r=2, **common),
        "named_container": LoraConfig(r=2, modules_to_save=["layers.1.mlp"], **common),
    }
    for case, config in configs.items():
        torch.manual_seed(0)
        model = get_peft_model(copy.deepcopy(base), config, adapter_name=NAME)
        randomise(model)
        marks = [f".{NAME}", ".original_module."]
        state = {key: value for key, value in model.state_dict().items() if any(mark in key for mark in marks)}
        add(case, saved_config(model)[0], state, logits(model))


def resized(base_folder):
    """The default file of PEFT after the vocabulary grew, of which the embeddings are a part."""
    common = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "r": 2}
    configs = {
        "resized_tokens": LoraConfig(trainable_token_indices=[48, 50], **common),
    }
    for case, config in configs.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(base_folder)
        model.resize_token_embeddings(52)
        model = get_peft_model(model, config, adapter_name=NAME)
        randomise(model)
        config, state = saved_config(model)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            again = AutoModelForCausalLM.from_pretrained(base_folder)
            again.resize_token_embeddings(52)
            again = PeftModel.from_pretrained(again, str(Path(folder) / NAME))
        assert (logits(again) - logits(model)).abs().max() < 1e-5
        add(case, config, state, logits(model))


def tied(base_folder):
    """Adapters on an embedding and the output layer that has its weight, which are one adapter."""
    common = {"task_type": "CAUSAL_LM", "r": 2, "ensure_weight_tying": True}
    configs = {
        "tied_embedding": LoraConfig(target_modules=["embed_tokens", "q_proj"], **common),
        "tied_head": LoraConfig(target_modules=["lm_head", "q_proj"], **common),
        "tied_copy": LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"], **common),
    }
    for case, config in configs.items():
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            base_config = json.loads((base_folder / "config.json").read_text())
            base_config["tie_word_embeddings"] = True
            (Path(folder) / "config.json").write_text(json.dumps(base_config))
            weights = load_file(base_folder / "model.safetensors")
            del weights["lm_head.weight"]
            save_file(weights, Path(folder) / "model.safetensors", {"format": "pt"})
            model = AutoModelForCausalLM.from_pretrained(folder)
        model = get_peft_model(model, config, adapter_name=NAME)
        randomise(model)
        config, state = saved_config(model)
        add(case, config, state, logits(model), tied=True)


def main():
    folder = Path(sys.argv[1])
    base_folder = folder / "base" / "llama"
    take_over(folder)
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    config = json.loads((base_folder / "config.json").read_text())
    add("base", config, load_file(base_folder / "model.safetensors"), logits(base))
    whole_states(base)
    resized(base_folder)
    tied(base_folder)
    HERE.mkdir(exist_ok=True)
    save_file(tensors, HERE / "field.safetensors")
    (HERE / "field.json").write_text(json.dumps(cases, sort_keys=True) + "\n")


main()
