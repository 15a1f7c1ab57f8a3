"""Producing adapter folders: a recipe fills a fresh adapter, PEFT saves it, edits damage or rewrite the files."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .spec import Adapter
from .training import adapter_tensors, train

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

Recipe = Callable[[PeftModel, str, dict[str, Tensor]], None]
Edit = Callable[[Path], None]


def produce(adapter: Adapter, name: str, base: nn.Module, inputs: dict[str, Tensor], folder: Path) -> None:
    """Create the adapter on a copy of the base, fill it and save it as `folder`.

    Each adapter gets a model of its own, since the keys that PEFT writes for biases depend on what else is loaded. The
    model card that PEFT adds is not needed, and stays in the temporary folder.
    """
    config = PEFT_TYPE_TO_CONFIG_MAPPING[adapter.method](**copy.deepcopy(adapter.config))
    peft = get_peft_model(copy.deepcopy(base), config, adapter_name=name).eval()
    with tempfile.TemporaryDirectory() as scratch:
        options = {}
        if adapter.converted:
            # PEFT loads the initial state under its folder's name, which must not be the adapter's own.
            peft.save_pretrained(Path(scratch, "start"))
            initial = _subfolder(Path(scratch, "start"), name).rename(Path(scratch, "initial_state"))
            options["path_initial_model_for_weight_conversion"] = str(initial)
        (adapter.recipe or randomised)(peft, name, inputs)
        saved = Path(scratch, "saved")
        peft.save_pretrained(saved, **options)
        folder.mkdir(parents=True)
        for file in (CONFIG, WEIGHTS):
            shutil.copy(_subfolder(saved, name) / file, folder / file)
    for edit in adapter.edits:
        edit(folder)


def _subfolder(folder: Path, name: str) -> Path:
    """Where `save_pretrained(folder)` puts an adapter."""
    return folder if name == "default" else folder / name


@torch.no_grad()
def randomised(peft: PeftModel, name: str, inputs: dict[str, Tensor]) -> None:
    """Random tensors, such that the adapter changes the output by a sizeable fraction."""
    for key, tensor in adapter_tensors(peft, name).items():
        noise = torch.randn(tensor.shape)
        if "lora_magnitude_vector" in key:
            tensor.mul_(1 + 0.15 * noise)
        elif "ia3_l" in key:
            tensor.copy_((1 + 0.25 * noise).clamp(min=0.4))
        elif "lora_E" in key:
            tensor.copy_(0.6 * noise)
        elif "hada_" in key or "lokr_" in key:
            tensor.copy_(0.5 * noise)
        elif "lora_embedding_A" in key:
            tensor.copy_(0.6 * noise)
        elif "lora_B.bias" in key:
            tensor.copy_(0.3 * noise)
        elif "lora_A" in key:
            tensor.copy_(noise / tensor[0].numel() ** 0.5)
        elif "lora_B" in key or "lora_embedding_B" in key:
            tensor.copy_(0.35 * noise / tensor.shape[1] ** 0.5)
        else:  # a copy of a whole module, or a bias of the base model
            tensor.add_(0.2 * noise)


def fresh(peft: PeftModel, name: str, inputs: dict[str, Tensor]) -> None:
    """The adapter as PEFT initialises it."""


def nudged(peft: PeftModel, name: str, inputs: dict[str, Tensor]) -> None:
    """A little away from the initial state, as after a short training run."""
    with torch.no_grad():
        for tensor in adapter_tensors(peft, name).values():
            tensor.add_(0.1 * torch.randn(tensor.shape))


def trained(start: Recipe = fresh, optimizer: str = "sgd", lr: float = 0.05, steps: int = 10) -> Recipe:
    """Trained for a while; an AdaLoRA adapter goes through its allocator, and is saved with the ranks that it kept."""

    def recipe(peft: PeftModel, name: str, inputs: dict[str, Tensor]) -> None:
        start(peft, name, inputs)
        train(peft, name, inputs, {"optimizer": optimizer, "lr": lr, "weight_decay": 0.0, "steps": steps})

    return recipe


def pruned(kept: dict[str, str]) -> Recipe:
    """AdaLoRA's random state with some ranks dropped: for each layer, a string of `x` (kept) and `.` (dropped)."""

    def recipe(peft: PeftModel, name: str, inputs: dict[str, Tensor]) -> None:
        randomised(peft, name, inputs)
        peft.peft_config[name].rank_pattern = {
            f"{layer}.lora_E.{name}": [mark == "x" for mark in marks] for layer, marks in kept.items()}

    return recipe


def edit_config(**changes: object) -> Edit:
    """Change fields of `adapter_config.json`."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text()) | changes
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))

    return edit


def keep_config(*fields: str) -> Edit:
    """Drop all other fields of `adapter_config.json`, as in a file from an early release."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({field: config[field] for field in fields}, indent=2, sort_keys=True))

    return edit


def edit_tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Edit:
    def edit(folder: Path) -> None:
        tensors = change(load_file(folder / WEIGHTS))
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})

    return edit


def drop_tensor(ending: str) -> Edit:
    return edit_tensors(lambda tensors: {key: tensor for key, tensor in tensors.items() if not key.endswith(ending)})


def change_tensor(ending: str, change: Callable[[Tensor], Tensor]) -> Edit:
    return edit_tensors(lambda tensors: {
        key: change(tensor) if key.endswith(ending) else tensor for key, tensor in tensors.items()})


def rename_tensor(ending: str, replacement: str) -> Edit:
    return edit_tensors(lambda tensors: {
        key.removesuffix(ending) + replacement if key.endswith(ending) else key: tensor
        for key, tensor in tensors.items()})


def truncate(file: str, size: int) -> Edit:
    def edit(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes()[:size])

    return edit


def remove(file: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / file).unlink()

    return edit
