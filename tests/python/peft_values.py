"""Writes `tests/fixtures/peft_values.safetensors`: what PEFT computes in cases for which the parity cases have no model.

    python tests/python/peft_values.py [FILE]

Trainable tokens (a list, a dictionary, a tied head), target parameters (matrices, experts, transposed experts), repeated
layers, EVA, inits that take from the weight of a head whose rest goes into the file, and LoHa and LoKr on 1-D
convolutions of several channels. For each case NAME the file holds the base model (`NAME/base/…`), the adapter as PEFT saves it
(`NAME/adapter/…`), inputs (`NAME/x`) and outputs (`NAME/expected/…`). Its metadata hold one text, `json`: an object with the
text of each adapter's config (`NAME`) and the versions. Two runs write the same bytes.
"""

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

tensors: dict[str, torch.Tensor] = {}
texts: dict[str, str] = {}


class Words(nn.Module):
    """An embedding before a linear layer."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 6)
        self.lin = nn.Linear(6, 5)

    def forward(self, x):
        return self.lin(self.embed_tokens(x))


class TwoTables(nn.Module):
    """Two embeddings whose rows are added."""

    def __init__(self):
        super().__init__()
        self.word = nn.Embedding(9, 6)
        self.position = nn.Embedding(7, 6)
        self.lin = nn.Linear(6, 5)

    def forward(self, x):
        return self.lin(self.word(x) + self.position(torch.arange(x.shape[1]).expand_as(x)))


class Tied(nn.Module):
    """A head whose weight is the table of the input embedding."""

    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}

    def __init__(self):
        super().__init__()
        self.config = {"tie_word_embeddings": True, "model_type": "custom"}
        self.embed_tokens = nn.Embedding(8, 6)
        self.lin = nn.Linear(6, 6)
        self.lm_head = nn.Linear(6, 8, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def get_input_embeddings(self):
        return self.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, x):
        return self.lm_head(torch.tanh(self.lin(self.embed_tokens(x))))


class Language(nn.Module):
    """An embedding, a layer, and a head with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(8, 6)
        self.lin = nn.Linear(6, 6)
        self.lm_head = nn.Linear(6, 8, bias=False)

    def get_input_embeddings(self):
        return self.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, x):
        return self.lm_head(torch.tanh(self.lin(self.embed_tokens(x))))


class Experts(nn.Module):
    """Fused experts: a matrix for each, all of which see every row."""

    def __init__(self, transposed):
        super().__init__()
        up, down = (3, 5, 4), (3, 6, 5)
        if transposed:
            self.is_transposed = True
            up, down = (3, 4, 5), (3, 5, 6)
        # The names are not in alphabetical order, so that it shows which order PEFT uses.
        self.up = nn.Parameter(torch.randn(up) * 0.5)
        self.down = nn.Parameter(torch.randn(down) * 0.5)
        self.transposed = transposed

    def forward(self, x):
        up, down = self.up, self.down
        if self.transposed:
            up, down = up.transpose(1, 2), down.transpose(1, 2)
        hidden = torch.tanh(torch.einsum("eoi,ni->eno", up, x))
        return torch.einsum("eoi,eni->no", down, hidden)


class Mixture(nn.Module):
    """Experts after a linear layer whose name is also that of one of the experts' weights."""

    def __init__(self, transposed):
        super().__init__()
        self.down = nn.Linear(4, 4)
        self.experts = Experts(transposed)

    def forward(self, x):
        return self.experts(self.down(x))


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Parameter(torch.randn(3, 4) * 0.5)

    def forward(self, x):
        return x @ self.proj.T


class Gated(nn.Module):
    """A matrix that belongs to no layer."""

    def __init__(self):
        super().__init__()
        self.gate = Gate()

    def forward(self, x):
        return torch.tanh(self.gate(x))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return x + torch.tanh(self.lin(x))


class Stack(nn.Module):
    """Three blocks in a list."""

    def __init__(self):
        super().__init__()
        self.config = transformers.PretrainedConfig(num_hidden_layers=3)
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Towers(nn.Module):
    """Three layers: two read the same input, and the third a different one."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(6, 4)
        self.k = nn.Linear(6, 4)
        self.o = nn.Linear(4, 5)

    def forward(self, x):
        return self.o(torch.sin(3 * (self.q(x) + self.k(x))))


class Signal(nn.Module):
    """Two 1-D convolutions, of several channels; the second one has groups."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(4, 6, 3, padding=2, dilation=2)
        self.second = nn.Conv1d(6, 4, 2, stride=2, groups=2, bias=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def seeded(seed, build):
    torch.manual_seed(seed)
    model = build()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.5
    if isinstance(model, Tied):
        model.lm_head.weight = model.embed_tokens.weight
    return model.eval()


def filled(model):
    """Gives the adapter's tensors random values, so that it acts."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.5
    return model


def put_base(case, model):
    tied = {id(model.lm_head.weight)} if isinstance(model, Tied) else set()
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and tied:
            continue
        tensors[f"{case}/base/{key}"] = value.detach().clone()


def put_adapter(case, model, embeddings=False):
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=embeddings)
        text = json.loads((Path(folder) / "adapter_config.json").read_text())
        for field in ("target_modules", "exclude_modules"):
            if isinstance(text[field], list):
                text[field].sort()  # PEFT writes sets in hash order.
        texts[case] = json.dumps(text, indent=2, sort_keys=True)
        with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as file:
            for key in file.keys():
                tensors[f"{case}/adapter/{key}"] = file.get_tensor(key)


def put(case, **values):
    for name, value in values.items():
        tensors[f"{case}/{name.replace('__', '/')}"] = value.detach().clone()


@torch.no_grad()
def record(case, model, config, x, merges=True, embeddings=False):
    """Records base, adapter, and the outputs: fresh, acting, merged, disabled. Returns the model in its last state."""
    put_base(case, model)
    put(case, x=x, expected__base=model(x))
    model = peft.get_peft_model(model, config).eval()
    put(case, expected__fresh=model(x))
    filled(model)
    put_adapter(case, model, embeddings)
    put(case, expected__output=model(x))
    with model.disable_adapter():
        put(case, expected__disabled=model(x))
    if merges:
        model.merge_adapter()
        put(case, expected__merged=model(x))
    return model


def loaded(case, model):
    """The adapter of a case on another model."""
    prefix = f"{case}/adapter/"
    adapter = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "adapter_config.json").write_text(texts[case])
        save_file(adapter, Path(folder) / "adapter_model.safetensors")
        return peft.PeftModel.from_pretrained(model, folder).eval()


def tokens():
    ids = torch.tensor([[1, 4, 2, 9], [0, 10, 4, 4]])
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["lin"], trainable_token_indices=[4, 1, 9])
    record("tokens_list", seeded(1, Words), config, ids)
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["lin"], trainable_token_indices={"word": [0, 3], "position": [2]}
    )
    record("tokens_dict", seeded(2, TwoTables), config, torch.tensor([[0, 3, 2], [3, 8, 0]]))
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["lin"], trainable_token_indices=[2, 5])
    record("tokens_tied", seeded(3, Tied), config, torch.tensor([[2, 5, 1], [7, 2, 0]]))


def parameters():
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(7))
    names = ["experts.up", "experts.down"]
    for case, seed, transposed in (("experts", 4, False), ("experts_transposed", 5, True)):
        config = peft.LoraConfig(r=2, lora_alpha=3, target_parameters=names)
        record(case, seeded(seed, lambda: Mixture(transposed)), config, x)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["down"], target_parameters=["experts.up"])
    record("experts_and_layer", seeded(6, lambda: Mixture(False)), config, x)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_parameters=["gate.proj"])
    record("matrix", seeded(7, Gated), config, x)


def replication():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(8))
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["lin"], layer_replication=[[0, 2], [1, 3]])
    record("replication", seeded(8, Stack), config, x, merges=False)


def eva():
    case, x = "eva", torch.randn(40, 6, generator=torch.Generator().manual_seed(9)) * torch.tensor([4, 0.3, 0.2, 0.1, 0.1, 0.1])
    model = seeded(9, Towers)
    put_base(case, model)
    put(case, x=x, expected__base=model(x))
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["q", "k", "o"], init_lora_weights="eva",
        eva_config=peft.EvaConfig(rho=2.0, adjust_scaling_factors=True),
    )
    model = peft.get_peft_model(model, config)
    peft.initialize_lora_eva_weights(model, [x], show_progress_bar=False,
                                     forward_fn=lambda model, x: model(x), prepare_model_inputs_fn=None,
                                     prepare_layer_inputs_fn=None)
    put_adapter(case, model.eval())


@torch.no_grad()
def heads():
    ids = torch.tensor([[2, 5, 1], [7, 2, 0]])
    for init in ("pissa", "olora"):
        case = f"{init}_head"
        config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["lin", "lm_head"], init_lora_weights=init)
        model = record(case, seeded(10, Language), config, ids, embeddings="auto").base_model.model
        for name in ("lin", "lm_head"):
            put(case, **{f"expected__{name}": getattr(model, name).base_layer.weight})
        # The head's part in the file is used, whatever head the model had.
        other = seeded(10, Language)
        other.lm_head.weight *= 0.5
        put(case, expected__other_head=loaded(case, other)(ids))


def convolutions():
    x = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(11))
    for seed, (case, method, options) in enumerate((
        ("loha_conv1d", peft.LoHaConfig, {"r": 3}),
        ("loha_conv1d_core", peft.LoHaConfig, {"r": 3, "use_effective_conv2d": True}),
        # PEFT lays out the product of a whole three-dimensional factor in an order of its own.
        ("lokr_conv1d_whole", peft.LoKrConfig, {"r": 2}),
        ("lokr_conv1d_whole_both", peft.LoKrConfig, {"r": 1, "decompose_both": True, "decompose_factor": 3}),
        ("lokr_conv1d_product", peft.LoKrConfig, {"r": 1}),
        ("lokr_conv1d_core", peft.LoKrConfig, {"r": 2, "use_effective_conv2d": True, "decompose_factor": 1}),
    ), start=11):
        record(case, seeded(seed, Signal), method(alpha=3, target_modules=["first", "second"], **options), x)


def main() -> None:
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tokens()
    parameters()
    replication()
    eva()
    heads()
    convolutions()
    texts.update(peft=peft.__version__, torch=torch.__version__)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "fixtures" / "peft_values.safetensors"
    # With several entries, the order would change from run to run.
    save_file(tensors, path, metadata={"json": json.dumps(texts, sort_keys=True)})


if __name__ == "__main__":
    main()
