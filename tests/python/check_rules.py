"""What Python PEFT does with adapters that are written in other ways: the answers that `peft check --for peft` has to have.

    python tests/python/check_rules.py peft-runtime/cli/tests/commands/check/peft_rules.json

For each case an adapter is trained (with random values), written, changed, and loaded again. PEFT `refused` it if loading fails; it is
`taken` if the model then computes what it computed before and has every tensor of the file, and otherwise `ignored`.
"""

import json
import pathlib
import sys
import tempfile
import warnings

import peft
import torch
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(6, 8)
        self.q_proj = nn.Linear(8, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 6, bias=False)

    def forward(self, tokens):
        hidden = self.q_proj(self.embed_tokens(tokens))
        hidden = self.conv(hidden.transpose(1, 2)).transpose(1, 2)
        return self.lm_head(self.norm(hidden))


def lora(**fields):
    return LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], **fields})


def same(tensors):
    return tensors


def keys(change):
    return lambda tensors: {change(key): tensor for key, tensor in tensors.items()}


def more(**tensors):
    return lambda known: {**known, **{PREFIX + key.replace("__", "."): tensor for key, tensor in tensors.items()}}


# feature: the config that is trained, what is done to the tensors, and to the config's fields
CASES = {
    "lora": (lora(), same, {}),
    "ada-lora": (AdaLoraConfig(init_r=3, target_r=2, total_step=10, target_modules=["q_proj"]), same, {}),
    "ia3": (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), same, {}),
    "loha": (LoHaConfig(r=2, alpha=2, target_modules=["q_proj"]), same, {}),
    "lokr": (LoKrConfig(r=2, alpha=2, target_modules=["q_proj"]), same, {}),
    "unknown-method": (lora(), same, {"peft_type": "NEWEST"}),
    "dora": (lora(use_dora=True), same, {}),
    "rs-lora": (lora(use_rslora=True), same, {}),
    "lora-bias": (lora(lora_bias=True), same, {}),
    "base-bias": (lora(bias="all"), same, {}),
    "full-copies": (lora(modules_to_save=["lm_head"]), same, {}),
    "norm-copies": (lora(modules_to_save=["norm"]), same, {}),
    "trainable-tokens": (lora(trainable_token_indices={"embed_tokens": [1, 3]}), same, {}),
    "mixed-ranks": (lora(target_modules=["q_proj", "lm_head"], rank_pattern={"lm_head": 3}), same, {}),
    "alpha-pattern": (lora(alpha_pattern={"q_proj": 1}), same, {}),
    "init-found-again": (lora(init_lora_weights="pissa"), same, {}),
    "init-randomised": (lora(init_lora_weights="pissa_niter_4"), same, {}),
    "init-corda": (lora(), same, {"init_lora_weights": "corda", "corda_config": {}}),
    "embedding": (lora(target_modules=["embed_tokens"]), same, {}),
    "head": (lora(target_modules=["lm_head"]), same, {}),
    "convolution": (lora(target_modules=["conv"]), same, {}),
    "no-prefix": (lora(), keys(lambda key: key.removeprefix(PREFIX)), {}),
    "nested-prefix": (lora(), keys(lambda key: PREFIX + key), {}),
    "wrapper-prefix": (lora(), keys(lambda key: key.replace(PREFIX, PREFIX + "_orig_mod.")), {}),
    "adapter-name": (lora(), keys(lambda key: key.replace(".weight", ".default.weight")), {}),
    "other-adapter-name": (lora(), keys(lambda key: key.replace(".weight", ".chat.weight")), {}),
    "strangers": (lora(), more(q_proj__something=torch.zeros(2)), {}),
    "half-pairs": (lora(), lambda tensors: {key: value for key, value in tensors.items() if "lora_A" in key}, {}),
    "inconsistent": (lora(), same, {"r": 7}),
}


def answer(config, change, fields):
    torch.manual_seed(0)
    base = Model()
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    model = get_peft_model(base, config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.3
    tokens = torch.tensor([[1, 2, 3]])
    expected = model(tokens).detach()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model.save_pretrained(folder)
        tensors = change(load_file(folder / WEIGHTS))
        save_file(tensors, folder / WEIGHTS)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        fresh = Model()
        fresh.load_state_dict(weights)
        try:
            loaded = PeftModel.from_pretrained(fresh, folder).eval()
        except Exception:
            return "refused"
        has_all = len(get_peft_model_state_dict(loaded)) == len(tensors)
        return "taken" if has_all and torch.allclose(loaded(tokens), expected, atol=1e-5) else "ignored"


def main(path):
    warnings.simplefilter("ignore")
    answers = {name: answer(*case) for name, case in CASES.items()}
    text = json.dumps({"peft": peft.__version__, "answers": answers}, indent=1, sort_keys=True)
    pathlib.Path(path).write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
