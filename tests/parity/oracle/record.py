"""Recording one case: weights, inputs, adapters, the replay on PEFT, and the files."""

from __future__ import annotations

import copy
import json
import random
import shutil
import zlib
from pathlib import Path

import torch
from peft import PeftConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from .adapters import produce
from .guards import DEFAULT_TOLERANCE, Vacuous, check_rounding
from .models import base_tensors, build, draw_inputs, model_config
from .session import Session
from .spec import Case, Step, named, published

#: Initialisations that PEFT cannot run, or runs differently, on a float64 base.
FLOAT32_ONLY = ("pissa", "olora")


def record(case: Case, folder: Path) -> None:
    """Write the case to `folder`, which is replaced."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    seed(case)
    base = build(case.model)
    inputs = draw_inputs(case.model, base)
    for name, adapter in case.adapters.items():
        produce(adapter, name, base, inputs, folder / "adapters" / name)

    steps = named(case.steps)
    tensors = base_tensors(base)
    expected = replay(case, steps, copy.deepcopy(base), inputs, folder)
    if factorises_base(folder):
        again = replay(case, steps, shaken(base), inputs, folder, check_failures=False)
    else:
        again = replay(case, steps, copy.deepcopy(base).double(), as_double(inputs), folder, check_failures=False)
    check_rounding(expected, again, case.tolerance or DEFAULT_TOLERANCE)

    save_file(tensors, folder / "base.safetensors")
    save_file(inputs, folder / "inputs.safetensors")
    save_file(expected, folder / "expected.safetensors")
    (folder / "case.json").write_text(case_json(case, steps))
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)  # the library makes them readable only by their owner


def seed(case: Case) -> None:
    """Seed every case with its name, so that no case depends on which others were recorded before it."""
    number = zlib.crc32(f"{case.name}/{case.salt}".encode())
    random.seed(number)
    torch.manual_seed(number)


def replay(case: Case, steps: list[Step], base: nn.Module, inputs: dict[str, Tensor], folder: Path,
           check_failures: bool = True) -> dict[str, Tensor]:
    """Load the saved adapters into a fresh base and perform the steps; returns what they compared."""
    seed(case)
    session = Session(base, inputs, folder / "adapters", trained_adapters(steps), case.inert, case.still,
                      check_failures)
    for index, step in enumerate(steps):
        try:
            session.perform(step)
        except Exception as error:
            error.add_note(f"in case {case.name}, step {index}: {step}")
            raise
    if not session.expected:
        raise Vacuous(f"{case.name} compares nothing")
    return session.expected


def trained_adapters(steps: list[Step]) -> set[str]:
    """The adapters that are active at a `grads` or `train`: PEFT has to know at load time which will train."""
    active: list[str] = []
    trained: set[str] = set()
    for step in steps:
        match step["op"]:
            case "load" if not active:
                active = [step["adapter"]]
            case "set_active":
                active = step["adapters"]
            case "delete" if active == [step["adapter"]]:
                active = []
            case "grads" | "train":
                [name] = active
                trained.add(name)
    return trained


def factorises_base(folder: Path) -> bool:
    """Whether an adapter changes the base at load time by a factorisation, which PEFT refuses or runs in float32."""
    for adapter in (folder / "adapters").iterdir():
        try:
            init = getattr(PeftConfig.from_pretrained(str(adapter)), "init_lora_weights", None)
        except Exception:  # a damaged config, which is what its case tests
            continue
        if isinstance(init, str) and init.startswith(FLOAT32_ONLY):
            return True
    return False


@torch.no_grad()
def shaken(base: nn.Module) -> nn.Module:
    """A copy with the last bits of its weights changed, to see their effect on a factorisation."""
    copied = copy.deepcopy(base)
    for parameter in copied.parameters():
        parameter.mul_(1 + 2e-7 * torch.randn(parameter.shape))
    return copied


def as_double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def case_json(case: Case, steps: list[Step]) -> str:
    """`case.json`, with one line for each step."""
    head = {"name": case.name, "model": case.model.kind, "model_config": model_config(case.model)}
    if case.tolerance:
        head["tolerance"] = case.tolerance
    fields = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lines = ",\n".join(f"    {json.dumps(published(step))}" for step in steps)
    return "{\n" + ",\n".join(fields) + f',\n  "steps": [\n{lines}\n  ]\n}}\n'
