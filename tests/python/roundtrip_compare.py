"""Comparisons of what two sides wrote; each raises `Mismatch` with the difference."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from oracle.adapters import CONFIG, WEIGHTS
from safetensors.torch import load_file
from torch import Tensor

#: Fields that PEFT holds as sets and writes in hash order.
SETS = ("target_modules", "exclude_modules", "feedforward_modules")


class Mismatch(AssertionError):
    """The two sides do not agree."""


def read_config(folder: Path) -> dict:
    return json.loads((folder / CONFIG).read_text())


def distance(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise Mismatch(f"shape {tuple(ours.shape)} and {tuple(theirs.shape)}")
    return (ours.double() - theirs.double()).abs().max().item()


def same_tensors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
        raise Mismatch("the base model is not the one that was written")


def same_bytes(ours: Path, theirs: Path) -> None:
    if ours.read_bytes() == theirs.read_bytes():
        return
    mine, other = load_file(ours), load_file(theirs)
    if mine.keys() != other.keys():
        raise Mismatch(f"{WEIGHTS} saved again has other keys: {sorted(mine.keys() ^ other.keys())}")
    changed = [key for key in mine if not torch.equal(mine[key], other[key])]
    raise Mismatch(f"{WEIGHTS} saved again has other bytes; other values: {changed or 'none, so the header'}")


def same_config(ours: dict, theirs: dict, *excluded: str) -> None:
    """Exactly the same fields; equal values and types, except for the order of sets and the excluded fields."""
    if ours.keys() != theirs.keys():
        raise Mismatch(f"{CONFIG}: PEFT's only {sorted(theirs.keys() - ours.keys())}, ours only "
                       f"{sorted(ours.keys() - theirs.keys())}")
    for field, value in theirs.items():
        sides = [side[field] for side in (ours, theirs)]
        if field in SETS:
            sides = [sorted(side) if isinstance(side, list) else side for side in sides]
        if field not in excluded and json.dumps(sides[0], sort_keys=True) != json.dumps(sides[1], sort_keys=True):
            raise Mismatch(f"{CONFIG}: {field} is {ours[field]!r}, PEFT's {value!r}")


def check_pruned(tensors: dict[str, Tensor], ours: dict[str, list[bool]], theirs: dict[str, list[bool]]) -> None:
    """AdaLoRA's pattern names the same layers as PEFT's, and the tensors have the ranks that it keeps."""
    if {key: len(marks) for key, marks in ours.items()} != {key: len(marks) for key, marks in theirs.items()}:
        raise Mismatch(f"{CONFIG}: rank_pattern is {ours}, PEFT's {theirs}")
    kept = [mark for marks in ours.values() for mark in marks]
    if all(kept) or not any(kept):
        raise Mismatch(f"{CONFIG}: rank_pattern keeps all or nothing: {ours}")
    for key, marks in ours.items():
        layer, rank = f"base_model.model.{key.removesuffix('.lora_E')}", sum(marks)
        shapes = {name: tensors[f"{layer}.{name}"].shape for name in ("lora_A", "lora_B", "lora_E")}
        if (shapes["lora_A"][0], shapes["lora_B"][1], tuple(shapes["lora_E"])) != (rank, rank, (rank, 1)):
            raise Mismatch(f"{layer} keeps {rank} ranks, and its tensors are {shapes}")
