"""Gradients and training of one adapter, as the format page defines them, on real PEFT."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor, nn

from .guards import clear_thresholds
from .models import run


def adapter_tensors(peft: PeftModel, name: str) -> dict[str, nn.Parameter]:
    """The trainable tensors of an adapter under their keys in the file, as live parameters.

    PEFT names the keys itself: it gets the model's parameters as the state dict to pick from. A rank pattern is hidden
    meanwhile, because it would cut AdaLoRA's tensors to the kept ranks, and a training step needs all of them.
    """
    config = peft.peft_config[name]
    pattern = None
    if config.peft_type.value == "ADALORA":
        pattern, config.rank_pattern = config.rank_pattern, None
    try:
        picked = get_peft_model_state_dict(peft, state_dict=peft.state_dict(keep_vars=True), adapter_name=name)
    finally:
        if pattern is not None:
            config.rank_pattern = pattern
    return {key: picked[key] for key in sorted(picked) if picked[key].requires_grad}


def gradients(peft: PeftModel, name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of `sum(output * probe)` for each trainable tensor of the adapter."""
    tensors = adapter_tensors(peft, name)
    loss = (run(peft, inputs) * inputs["probe"]).sum()
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))


def train(peft: PeftModel, name: str, inputs: dict[str, Tensor], step: dict) -> dict[str, Tensor]:
    """Train the adapter in eval mode; the result holds each tensor after the last step, and the losses."""
    tensors = adapter_tensors(peft, name)
    # A copy that two layers share is one parameter under two keys.
    optimizer = make_optimizer(list({id(tensor): tensor for tensor in tensors.values()}.values()), step)
    tuner = peft.base_model
    losses = []
    for index in range(step["steps"]):
        loss = ((run(peft, inputs) - inputs["target"]) ** 2).mean()
        if isinstance(tuner, AdaLoraModel):
            loss = with_orthogonality(tuner, loss)
        losses.append(loss.detach().clone())
        loss.backward()
        optimizer.step()
        if isinstance(tuner, AdaLoraModel):
            with clear_thresholds():
                tuner.update_and_allocate(index)
        optimizer.zero_grad()
    return {key: tensor.detach().clone() for key, tensor in tensors.items()} | {"loss": torch.stack(losses)}


def make_optimizer(parameters: list[nn.Parameter], step: dict) -> torch.optim.Optimizer:
    options = {"lr": step["lr"], "weight_decay": step["weight_decay"]}
    match step["optimizer"]:
        case "sgd":
            return torch.optim.SGD(parameters, **options)
        case "adamw":
            return torch.optim.AdamW(parameters, **options)
        case other:
            raise ValueError(f"no optimizer {other}")


def with_orthogonality(tuner: AdaLoraModel, loss: Tensor) -> Tensor:
    """The loss plus AdaLoRA's orthogonality term.

    PEFT adds the term in the tuner's own forward, to an output that has a `loss`, and its generic wrapper bypasses
    that forward. So the tuner's forward runs here over a model that only passes our loss through.
    """
    tuner.model.forward = lambda: SimpleNamespace(loss=loss)
    try:
        return tuner().loss
    finally:
        del tuner.model.forward
