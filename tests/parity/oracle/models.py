"""The base models of the format page, their random weights and their inputs."""

from __future__ import annotations

import json
import math

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from .spec import Model


class Mlp(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.lin0 = nn.Linear(config["in"], config["hidden"], bias=config["bias"])
        self.lin1 = nn.Linear(config["hidden"], config["out"], bias=config["bias"])

    def forward(self, x: Tensor) -> Tensor:
        return self.lin1(self.lin0(x).relu())


class Attention(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(d, d, bias=False))

    def forward(self, h: Tensor) -> Tensor:
        return self.o_proj(torch.tanh(self.q_proj(h) + self.k_proj(h)) * self.v_proj(h))


class FeedForward(nn.Module):
    def __init__(self, d: int, ff: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(d, ff)
        self.down_proj = nn.Linear(ff, d)

    def forward(self, h: Tensor) -> Tensor:
        return self.down_proj(self.up_proj(h).relu())


class Block(nn.Module):
    def __init__(self, d: int, ff: int) -> None:
        super().__init__()
        self.attn = Attention(d)
        self.mlp = FeedForward(d, ff)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attn(h)
        return h + self.mlp(h)


class Blocks(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        vocab, d = config["vocab"], config["d"]
        self.embed = nn.Embedding(vocab, d)
        self.layers = nn.ModuleList(Block(d, config["ff"]) for _ in range(config["layers"]))
        self.lm_head = nn.Linear(d, vocab, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h = layer(h)
        return self.lm_head(h)


class EmbConv1D(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.emb = nn.Embedding(100, 5)
        self.conv1d = Conv1D(1, 5)
        self.lin0 = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin0(self.conv1d(self.emb(x)).relu().flatten(1))


class Conv1d(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(1, 1, 2)
        self.lin0 = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin0(self.conv1d(x.reshape(-1, 1, 10)).relu().flatten(1))


class Conv2d(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        shape = {key: config[key] for key in ("stride", "padding", "dilation", "groups", "bias")}
        self.conv2d = nn.Conv2d(config["cin"], config["cout"], config["k"], **shape)
        self.lin0 = nn.Linear(config["flat"], 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin0(self.conv2d(x).relu().flatten(1))


CUSTOM = {"mlp": Mlp, "blocks": Blocks, "emb_conv1d": EmbConv1D, "conv1d": Conv1d, "conv2d": Conv2d}
TRANSFORMERS = {
    "tiny_bert": (BertConfig, lambda config: BertModel(config, add_pooling_layer=False)),
    "tiny_llama": (LlamaConfig, LlamaForCausalLM),
    "tiny_gpt2": (GPT2Config, GPT2LMHeadModel),
}


def model_config(model: Model) -> dict:
    """`model_config` of `case.json`: ours as it is, transformers' as its `config.json`."""
    if model.kind in CUSTOM:
        return model.config
    config_class, _ = TRANSFORMERS[model.kind]
    return json.loads(config_class(**model.config).to_json_string(use_diff=True))


def build(model: Model) -> nn.Module:
    """The base model in eval mode with random weights of a sensible scale, drawn from torch's global generator."""
    if model.kind in CUSTOM:
        base = CUSTOM[model.kind](model.config)
    else:
        config_class, constructor = TRANSFORMERS[model.kind]
        config = config_class(**model.config)
        config._attn_implementation = "eager"
        base = constructor(config)
    randomise(base)
    return base.eval()


@torch.no_grad()
def randomise(base: nn.Module) -> None:
    """Redraw every weight: the usual initial scales are so small that a wrong adapter would be within tolerance."""
    for name, parameter in base.named_parameters():
        if parameter.dim() == 1:
            parameter.normal_(0.0, 0.1)
            if name.endswith("weight"):  # a norm's gain
                parameter.add_(1.0)
            continue
        owner = base.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.Embedding):
            parameter.normal_(0.0, 1.0)
        else:
            fan_in = parameter.shape[0] if isinstance(owner, Conv1D) else parameter[0].numel()
            parameter.normal_(0.0, 0.8 / math.sqrt(fan_in))


def draw_inputs(model: Model, base: nn.Module) -> dict[str, Tensor]:
    """`x` (and `attention_mask`), `probe`, `target`.

    The probe is short enough that gradients sum few large terms, so that the tolerance stays far below them.
    """
    inputs = {"x": draw_x(model)}
    if model.masked:
        lengths = [model.length - 2 * (row % 2) for row in range(model.batch)]
        inputs["attention_mask"] = torch.tensor(
            [[1.0] * length + [0.0] * (model.length - length) for length in lengths])
    with torch.no_grad():
        output = run(base, inputs)
    inputs["probe"] = torch.randn(output.shape) * (4.0 / math.sqrt(output.numel()))
    inputs["target"] = torch.randn(output.shape)
    return inputs


def draw_x(model: Model) -> Tensor:
    config, batch = model.config, model.batch
    match model.kind:
        case "mlp":
            return torch.randn(batch, config["in"])
        case "conv1d":
            return torch.randn(batch, 10)
        case "conv2d":
            return torch.randn(batch, config["cin"], config["h"], config["w"])
        case "emb_conv1d":
            return torch.randint(0, 100, (batch, 10))
        case "blocks":
            return torch.randint(0, config["vocab"], (batch, model.length))
        case _:
            return torch.randint(model.first_token, config["vocab_size"], (batch, model.length))


def run(module: nn.Module, inputs: dict[str, Tensor], **options) -> Tensor:
    """The raw output of a model, adapted or not, for the inputs of a case."""
    if "attention_mask" in inputs:
        options["attention_mask"] = inputs["attention_mask"]
    output = module(inputs["x"], **options)
    return output if isinstance(output, Tensor) else output[0]


def base_tensors(base: nn.Module) -> dict[str, Tensor]:
    """Contents of `base.safetensors`; `named_parameters` yields only the first name of tied weights."""
    return {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
