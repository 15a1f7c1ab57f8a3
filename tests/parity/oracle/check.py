"""Reads written cases back and checks them against the format page."""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .adapters import CONFIG, WEIGHTS
from .models import CUSTOM, TRANSFORMERS

#: How much space the cases may take on a disk that stores files and folders in blocks.
SIZE_LIMIT = 19_000 * 1024
BLOCK = 4096
CASE_MINIMUM = 150

CUSTOM_CONFIG = {
    "mlp": {"in", "hidden", "out", "bias"},
    "blocks": {"vocab", "d", "ff", "layers"},
    "emb_conv1d": set(),
    "conv1d": set(),
    "conv2d": {"cin", "cout", "k", "stride", "padding", "dilation", "groups", "bias", "h", "w", "flat"},
}

#: Fields of each op: those that it must have, those that it may have.
FIELDS = {
    "load": ({"adapter"}, set()),
    "set_active": ({"adapters"}, set()),
    "forward": ({"expect"}, set()),
    "forward_mixed": ({"adapter_names", "expect"}, set()),
    "grads": ({"expect"}, set()),
    "train": ({"optimizer", "lr", "weight_decay", "steps", "expect"}, set()),
    "disable": (set(), set()),
    "enable": (set(), set()),
    "merge": (set(), {"adapters", "safe"}),
    "unmerge": (set(), set()),
    "base_weights": ({"expect"}, set()),
    "state_dict": ({"adapter", "expect"}, set()),
    "weighted": ({"name", "adapters", "weights"}, {"combination_type", "density", "majority_sign_method", "svd_rank"}),
    "scale": ({"adapter", "factor"}, set()),
    "delete": ({"adapter"}, set()),
    "fails": ({"step"}, {"contains"}),
}


def check_folder(folder: Path, only: str, names: set[str]) -> int:
    """Print what is wrong with the cases below `folder`; 0 if nothing is."""
    written = {path.name for path in folder.iterdir() if fnmatch.fnmatchcase(path.name, only)}
    problems = [f"{name}: in the tables, but not written" for name in sorted(names - written)]
    problems += [f"{name}: written, but in no table" for name in sorted(written - names)]
    for name in sorted(written):
        problems += [f"{name}: {problem}" for problem in check_case(folder / name)]
    size = sum(-(-path.stat().st_size // BLOCK) * BLOCK for path in [folder, *folder.rglob("*")])
    if only == "*":
        if size > SIZE_LIMIT:
            problems.append(f"the cases take {size // 1024} KiB, more than {SIZE_LIMIT // 1024}")
        if len(written) < CASE_MINIMUM:
            problems.append(f"{len(written)} cases are fewer than {CASE_MINIMUM}")
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(written)} cases checked, {size // 1024} KiB, {len(problems)} problems")
    return 1 if problems else 0


def check_case(folder: Path) -> Iterator[str]:
    case = json.loads((folder / "case.json").read_text())
    if set(case) - {"tolerance"} != {"name", "model", "model_config", "steps"}:
        yield f"fields of case.json are {sorted(case)}"
    if case["name"] != folder.name:
        yield f"is named {case['name']}"
    yield from check_model(case)
    yield from check_files(folder, case["steps"])
    base, inputs, expected = (load_file(folder / f"{name}.safetensors") for name in ("base", "inputs", "expected"))
    yield from check_inputs(case, inputs)
    yield from check_numbers("base", base)
    yield from check_numbers("expected", expected)
    compared = set()
    for index, step in enumerate(case["steps"]):
        for problem in check_step(step):
            yield f"step {index}: {problem}"
        if "expect" in step:
            found = {key: tensor for key, tensor in expected.items()
                     if key == step["expect"] or key.startswith(step["expect"] + ".")}
            compared |= set(found)
            short = {key.removeprefix(step["expect"]).removeprefix("."): tensor for key, tensor in found.items()}
            for problem in check_expectation(step, short, base, inputs):
                yield f"step {index} ({step['op']}): {problem}"
    if stray := set(expected) - compared:
        yield f"no step expects {sorted(stray)}"
    if not compared:
        yield "compares nothing"


def check_model(case: dict) -> Iterator[str]:
    model, config = case["model"], case["model_config"]
    if model in CUSTOM:
        if set(config) != CUSTOM_CONFIG[model]:
            yield f"model_config of {model} has {sorted(config)}"
    elif model not in TRANSFORMERS or "model_type" not in config:
        yield f"model {model} is unknown, or its config is not transformers'"


def check_files(folder: Path, steps: list[dict]) -> Iterator[str]:
    """Which files there are; an adapter's file may be missing or damaged only if the adapter has to be refused."""
    if extra := {path.name for path in folder.iterdir()} - {
            "case.json", "base.safetensors", "inputs.safetensors", "expected.safetensors", "adapters"}:
        yield f"extra files {sorted(extra)}"
    loaded = {step["adapter"] for step in steps if step["op"] == "load"}
    refused = {step["step"]["adapter"] for step in steps if step["op"] == "fails" and step["step"]["op"] == "load"}
    present = {path.name for path in (folder / "adapters").iterdir()}
    if present != loaded | refused:
        yield f"adapters {sorted(present)}, but the steps load {sorted(loaded | refused)}"
    for adapter in sorted(present):
        files = {path.name for path in (folder / "adapters" / adapter).iterdir()}
        if extra := files - {CONFIG, WEIGHTS}:
            yield f"adapter {adapter} has extra files {sorted(extra)}"
        try:
            json.loads((folder / "adapters" / adapter / CONFIG).read_text())
            load_file(folder / "adapters" / adapter / WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            if adapter in loaded:
                yield f"adapter {adapter} cannot be read: {error}"


def check_inputs(case: dict, inputs: dict[str, Tensor]) -> Iterator[str]:
    if set(inputs) - {"attention_mask"} != {"x", "probe", "target"}:
        yield f"inputs are {sorted(inputs)}"
    tokens = case["model"] in ("blocks", "emb_conv1d", *TRANSFORMERS)
    if inputs["x"].dtype != (torch.int64 if tokens else torch.float32):
        yield f"x has the type {inputs['x'].dtype}"
    if inputs["probe"].shape != inputs["target"].shape:
        yield "probe and target differ in shape"
    if "attention_mask" in inputs:
        if case["model"] in CUSTOM or inputs["attention_mask"].shape != inputs["x"].shape:
            yield "attention_mask does not fit"
    yield from check_numbers("inputs", {key: tensor for key, tensor in inputs.items() if key != "x"})


def check_numbers(file: str, tensors: dict[str, Tensor]) -> Iterator[str]:
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
            yield f"{key} of {file} is not finite float32"


def check_step(step: dict) -> Iterator[str]:
    if step.get("op") not in FIELDS:
        yield f"unknown op {step.get('op')}"
        return
    must, may = FIELDS[step["op"]]
    fields = set(step) - {"op"}
    if must - fields or fields - must - may:
        yield f"{step['op']} has the fields {sorted(fields)}"
    if step["op"] == "fails":
        if "expect" in step["step"]:
            yield "a failing step has no expectation"
        yield from check_step({**step["step"], **({"expect": ""} if "expect" in FIELDS[step["step"]["op"]][0] else {})})


def check_expectation(step: dict, found: dict[str, Tensor], base: dict[str, Tensor],
                      inputs: dict[str, Tensor]) -> Iterator[str]:
    """`found` holds the tensors of one expectation by what follows its name."""
    shapes = {key: tuple(tensor.shape) for key, tensor in found.items()}
    match step["op"]:
        case "forward" | "forward_mixed":
            if shapes != {"": tuple(inputs["probe"].shape)}:
                yield f"output {shapes}, but the probe is {tuple(inputs['probe'].shape)}"
            if step["op"] == "forward_mixed" and len(step["adapter_names"]) != len(inputs["x"]):
                yield "not one adapter for each row"
        case "base_weights":
            if shapes != {key: tuple(tensor.shape) for key, tensor in base.items()}:
                yield "not the parameters of base.safetensors"
        case "train":
            if shapes.pop("loss", None) != (step["steps"],):
                yield "not one loss for each step"
            yield from check_adapter_keys(shapes)
        case _:
            yield from check_adapter_keys(shapes)


def check_adapter_keys(shapes: dict[str, tuple]) -> Iterator[str]:
    if not shapes:
        yield "expects no tensor"
    if wrong := [key for key in shapes if not key.startswith("base_model.model.")]:
        yield f"keys {wrong} are not those of an adapter's file"
