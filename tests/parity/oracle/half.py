"""Recording a case whose base model is in half precision.

PEFT computes it three times over: in half, which gives the dtypes and what nothing may change; in float64 from the same
stored weights; and both again for neighbours of the case, whose numbers differ by one unit in the last place at random.
The largest error of the half runs is what rounding costs, and the tolerances are small multiples of it.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from .adapters import CONFIG, WEIGHTS, produce
from .models import base_tensors, build, draw_inputs, model_config
from .record import seed, trained_adapters
from .session import Session
from .spec import Case, Step, named, published

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
NEIGHBOURS = 16

#: How often the unit the root mean square error may be, and how often the largest error found the largest error, by op.
FACTORS = {"forward": (1.25, 1.75), "forward_mixed": (1.25, 1.75), "state_dict": (1.25, 1.75),
           "base_weights": (1.15, 1.15), "grads": (1.5, 2.0), "train": (1.5, 2.0)}
#: The same for weights into which several adapters are merged, for what a training step changed, and for losses.
SEVERAL, TRAINED, LOSS = (1.3, 1.5), (1.5, 2.0), (2.0, 2.0)


@dataclass(frozen=True)
class Half:
    """A case, its precision, whether PEFT holds adapters in float32, and whether the adapters were made on float32."""

    case: Case
    dtype: str = "bf16"
    autocast: bool = True
    from_float32: bool = False


class Unguarded:
    """Two outputs in half precision that should be equal or differ may do neither."""

    def add(self, acting: object, output: Tensor) -> None:
        pass


def record_half(half: Half, folder: Path) -> None:
    """Write the case to `folder`, which is replaced."""
    case, dtype = half.case, DTYPES[half.dtype]
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    seed(case)
    wide = build(case.model)
    inputs = draw_inputs(case.model, wide)
    if inputs["x"].is_floating_point():
        inputs["x"] = inputs["x"].to(dtype)
    base = copy.deepcopy(wide).to(dtype)
    for name, adapter in case.adapters.items():
        on, data = (wide, in_float32(inputs)) if half.from_float32 else (base, inputs)
        produce(adapter, name, on, data, folder / "adapters" / name)
    steps = named(case.steps)
    expected = run_half(half, steps, base, inputs, folder)
    exact = run_exact(half, steps, base, inputs, folder)
    unchanged = {name for name, tensor in expected.items() if torch.equal(tensor.double(), exact[name])}
    pairs = [(expected, exact), ({name: tensor.to(expected[name].dtype) for name, tensor in exact.items()}, exact)]
    for number in range(NEIGHBOURS):
        torch.manual_seed(number)
        moved, data = neighbour(base), {key: shaken(tensor) if key == "x" else tensor for key, tensor in inputs.items()}
        pairs.append((run_half(half, steps, moved, data, folder), run_exact(half, steps, moved, data, folder)))
    compared = [name for name in expected if name not in unchanged]
    tolerances = {name: tolerance(name, steps, pairs) for name in compared}
    save_file(base_tensors(base), folder / "base.safetensors")
    save_file(inputs, folder / "inputs.safetensors")
    save_file(expected, folder / "expected.safetensors")
    save_file({name: exact[name].float() for name in compared}, folder / "exact.safetensors")
    (folder / "tolerances.json").write_text(json.dumps(tolerances, indent=1) + "\n")
    (folder / "case.json").write_text(case_json(half, steps))
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)


def run_half(half: Half, steps: list[Step], base: nn.Module, inputs: dict[str, Tensor],
             folder: Path) -> dict[str, Tensor]:
    return perform(half.case, steps, copy.deepcopy(base), inputs, folder / "adapters",
                   {"autocast_adapter_dtype": half.autocast})


def run_exact(half: Half, steps: list[Step], base: nn.Module, inputs: dict[str, Tensor],
              folder: Path) -> dict[str, Tensor]:
    """In float64, from weights and adapters as the half run holds them."""
    with tempfile.TemporaryDirectory() as scratch:
        for adapter in half.case.adapters:
            held(half, base, folder / "adapters" / adapter, adapter, Path(scratch, adapter))
        data = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
        found = perform(half.case, steps, copy.deepcopy(base).double(), data, Path(scratch), None)
    return {name: tensor.double() for name, tensor in found.items()}


def held(half: Half, base: nn.Module, saved: Path, name: str, out: Path) -> None:
    """The adapter with its tensors as they are held once it is loaded, in float64."""
    peft = PeftModel.from_pretrained(copy.deepcopy(base), str(saved), adapter_name=name,
                                     autocast_adapter_dtype=half.autocast)
    state = get_peft_model_state_dict(peft, adapter_name=name)
    out.mkdir()
    shutil.copy(saved / CONFIG, out / CONFIG)
    save_file({key: tensor.double().contiguous() for key, tensor in state.items()}, out / WEIGHTS, {"format": "pt"})


def perform(case: Case, steps: list[Step], base: nn.Module, inputs: dict[str, Tensor], adapters: Path,
            load_options: dict[str, object] | None) -> dict[str, Tensor]:
    """Without options, in float64, where nothing is beyond the largest number."""
    seed(case)
    session = Session(base, inputs, adapters, trained_adapters(steps), case.inert, case.still,
                      check_failures=load_options is not None, load_options=load_options)
    session.outputs = session.mixed_outputs = Unguarded()
    for index, step in enumerate(steps):
        try:
            session.perform(step)
        except Exception as error:
            error.add_note(f"in case {case.name}, step {index}: {step}")
            raise
    return session.expected


@torch.no_grad()
def neighbour(base: nn.Module) -> nn.Module:
    moved = copy.deepcopy(base)
    for parameter in moved.parameters():
        parameter.copy_(shaken(parameter))
    return moved


def shaken(tensor: Tensor) -> Tensor:
    """Numbers in half precision, a third of them one unit larger in the last place, and a third one unit smaller."""
    if not tensor.is_floating_point():
        return tensor
    bits = tensor.detach().clone().view(torch.int16)
    moved = bits + torch.randint(-1, 2, bits.shape, dtype=torch.int16)
    return torch.where(tensor == 0, bits, moved).view(tensor.dtype)


def tolerance(name: str, steps: list[Step], pairs: list[tuple[dict, dict]]) -> dict[str, float]:
    index = next(index for index, step in enumerate(steps)
                 if name == step.get("expect") or name.startswith(f"{step.get('expect')}."))
    errors = [(found[name].double() - exact[name]).abs() for found, exact in pairs]
    unit = max(error.square().mean().sqrt().item() for error in errors)
    largest = max(error.max().item() for error in errors)
    rms, top = factors(name, steps, index)
    return {"unit": unit, "rms": rms * unit, "max": top * largest}


def factors(name: str, steps: list[Step], index: int) -> tuple[float, float]:
    before = [step["op"] for step in steps[:index]]
    if name.endswith(".loss"):
        return LOSS
    if "train" in before:
        return TRAINED
    if steps[index]["op"] == "base_weights" and "set_active" in before:
        return SEVERAL
    return FACTORS[steps[index]["op"]]


def in_float32(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


def case_json(half: Half, steps: list[Step]) -> str:
    """`case.json`, with one line for each step."""
    head = {"name": half.case.name, "dtype": half.dtype, "autocast_adapter_dtype": half.autocast,
            "model": half.case.model.kind, "model_config": model_config(half.case.model)}
    fields = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lines = ",\n".join(f"    {json.dumps(published(step))}" for step in steps)
    return "{\n" + ",\n".join(fields) + f',\n  "steps": [\n{lines}\n  ]\n}}\n'
