"""What Python PEFT does with adapters that are written in other ways: the answers that `peft check --for peft` has to have.

    python tests/python/check_rules.py peft-runtime/cli/tests/commands/check/peft_rules.json

For each case an adapter is trained (with random values), written, changed, and loaded again. PEFT `refused` it if loading fails; it is
`taken` if the model then computes what it computed before, has every tensor of the file and misses none, and otherwise `ignored`. All cases
of a feature have to have one answer.
"""

import json
import pathlib
import sys
import tempfile
import warnings

import peft
import torch
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
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


def without(*marks):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if not any(mark in key for mark in marks)}


def in_copies(name):
    return keys(lambda key: key.replace("lm_head.weight", f"lm_head.{name}.weight"))


COPIES = lora(modules_to_save=["lm_head"])
ROWS = lora(trainable_token_indices={"embed_tokens": [1, 3]})
TWO = lora(target_modules=["q_proj", "lm_head"])

# The same for configs and tensors that do not belong together, with several cases of a feature.
MISMATCHES = [
    ("renamed-copies", COPIES, in_copies("modules_to_save"), {}),
    ("renamed-copies", COPIES, in_copies("modules_to_save.default"), {}),
    ("missing-copies", COPIES, without("lm_head"), {}),
    ("missing-tokens", ROWS, without("tokens"), {}),
    ("missing-tokens", lora(), same, {"trainable_token_indices": [1, 3]}),
    ("missing-tokens", lora(), same, {"trainable_token_indices": []}),
    ("missing-parts", lora(), same, {"use_dora": True}),
    ("missing-parts", lora(), same, {"lora_bias": True}),
    ("missing-parts", lora(), same, {"kasa_config": {}}),
    ("missing-parts", lora(), same, {"velora_config": {"num_groups": 4}}),
    ("missing-parts", lora(), same, {"monteclora_config": {"num_samples": 2}}),
    ("undeclared", lora(), more(q_proj__lora_magnitude_vector=torch.ones(8)), {}),
    ("undeclared", lora(lora_bias=True), same, {"lora_bias": False}),
    ("undeclared", COPIES, in_copies("modules_to_save"), {"modules_to_save": None}),
    ("undeclared", ROWS, same, {"trainable_token_indices": None}),
    ("undeclared", lora(kasa_config=KasaConfig()), same, {"kasa_config": None}),
    ("null-patterns", lora(), same, {"rank_pattern": None}),
    ("null-patterns", lora(), same, {"alpha_pattern": None}),
    ("null-bias", lora(), same, {"bias": None}),
    ("unusable-sizes", lora(), same, {"r": None}),
    ("unusable-sizes", lora(), same, {"r": 2.0}),
    ("unusable-sizes", lora(), same, {"lora_alpha": None}),
    ("unusable-sizes", lora(), same, {"lora_alpha": "6"}),
    ("unusable-sizes", LoHaConfig(r=2, alpha=2, target_modules=["q_proj"]), same, {"alpha": None}),
    ("untargeted", TWO, same, {"target_modules": ["q_proj"]}),
    ("untargeted", TWO, same, {"exclude_modules": ["lm_head"]}),
    ("no-targets", lora(), same, {"target_modules": ["nothing"]}),
    ("no-targets", lora(), same, {"target_modules": ".*nothing"}),
    ("no-targets", lora(), same, {"target_modules": []}),
    ("no-targets", lora(), same, {"exclude_modules": ["q_proj"]}),
    ("other-variant", lora(kasa_config=KasaConfig()), same, {}),
    ("other-variant", lora(velora_config=VeloraConfig(num_groups=4)), same, {}),
    ("other-variant", lora(monteclora_config=MontecloraConfig()), same, {}),
    ("other-variant", lora(use_bdlora=BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2)), same, {}),
]
MISMATCHES += [
    ("unusable-fields", lora(), same, fields)
    for fields in (
        {"task_type": "causal_lm"},
        {"lora_dropout": None},
        {"lora_dropout": 2},
        {"bias": "All"},
        {"rank_pattern": []},
        {"layers_pattern": ["layers"]},
        {"target_modules": ".*q_proj", "layers_to_transform": [0]},
        {"target_modules": 1},
        {"modules_to_save": True},
        {"target_parameters": "q_proj.weight"},
        {"init_lora_weights": "random"},
        {"init_lora_weights": "PISSA"},
        {"init_lora_weights": "loftq", "loftq_config": {}},
        {"use_dora": True, "lora_bias": True},
        {"kasa_config": True},
        {"eva_config": []},
        {"monteclora_config": True},
        {"arrow_config": {}},
        {"use_bdlora": {}},
    )
]


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
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                loaded = PeftModel.from_pretrained(fresh, folder).eval()
        except Exception:
            return "refused"
        if any("missing adapter keys" in str(warning.message) for warning in warned):
            return "ignored"
        has_all = len(get_peft_model_state_dict(loaded)) == len(tensors)
        return "taken" if has_all and torch.allclose(loaded(tokens), expected, atol=1e-5) else "ignored"


def main(path):
    warnings.simplefilter("ignore")
    cases = [(name, *case) for name, case in CASES.items()] + MISMATCHES
    answers = {}
    for name, *case in cases:
        found = answer(*case)
        if answers.setdefault(name, found) != found:
            raise SystemExit(f"{name}: PEFT has {found} for {case[2]}, and {answers[name]} for another case")
    text = json.dumps({"peft": peft.__version__, "answers": answers}, indent=1, sort_keys=True)
    pathlib.Path(path).write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
