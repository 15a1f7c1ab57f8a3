"""Guards on the cases: none may be vacuous, and none may depend on the last bits of a float."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

DEFAULT_TOLERANCE = {"atol": 2e-5, "rtol": 2e-4}

#: What determines an output: for each layer of the model, the adapters that act there, in order, each with its state.
Acting = dict[str, tuple]

#: How far an adapter must change the output, and how large the largest entry of a gradient or update must be, so that
#: the tolerance cannot hide an implementation that leaves it out.
VISIBLE = 1e-3

#: The share of the tolerance that rounding in PEFT's own float32 run may use up.
ROUNDING_SHARE = 0.25


class Vacuous(AssertionError):
    """A case that an implementation could pass without doing the work."""


class IllConditioned(AssertionError):
    """A case whose expectations depend on rounding."""


class OutputGuard:
    """Compares the outputs of a case with each other: same adapters, same output; different adapters, different output."""

    def __init__(self, inert: bool, without: Tensor) -> None:
        """`without` is the output of the base model before anything is loaded."""
        self.inert = inert
        self.without = without
        self.seen: list[tuple[Acting, Tensor]] = []

    def add(self, acting: Acting, output: Tensor) -> None:
        if not torch.isfinite(output).all():
            raise Vacuous(f"output with {acting} is not finite")
        distance = (output - self.without).abs().max().item()
        if acting and distance < VISIBLE and not self.inert:
            raise Vacuous(f"output with {acting} differs from the base model's by {distance} only")
        for other, before in self.seen:
            distance = (output - before).abs().max().item()
            if acting == other and distance > 1e-4 * (1 + before.abs().max().item()):
                raise IllConditioned(f"output with {acting} changed by {distance}")
            if unordered(acting) != unordered(other) and distance < VISIBLE and not self.inert:
                raise Vacuous(f"outputs with {acting} and {other} differ by {distance} only")
        self.seen.append((acting, output))


def unordered(acting: Acting) -> dict[str, frozenset]:
    """Without the order of the adapters, which matters only to DoRA."""
    return {place: frozenset(adapters) for place, adapters in acting.items()}


def check_gradients(gradients: dict[str, Tensor], still: tuple[str, ...]) -> None:
    for key, gradient in gradients.items():
        if gradient.numel() and gradient.abs().max().item() < VISIBLE and not key.endswith(still):
            raise Vacuous(f"gradient of {key} is at most {gradient.abs().max().item()}")


def check_training(before: dict[str, Tensor], result: dict[str, Tensor], still: tuple[str, ...]) -> None:
    for key, tensor in before.items():
        moved = (result[key] - tensor).abs().max().item() if tensor.numel() else 1.0
        if moved < VISIBLE and not key.endswith(still):
            raise Vacuous(f"training moved {key} by {moved} only")
    losses = result["loss"]
    if len(losses) > 1 and (losses[-1] - losses[0]).abs().item() < VISIBLE:
        raise Vacuous(f"training left the loss at {losses.tolist()}")


def check_rounding(expected: dict[str, Tensor], again: dict[str, Tensor], tolerance: dict[str, float]) -> None:
    """Every expectation is well within tolerance of the result of a second run, in float64 or shaken."""
    for key, tensor in expected.items():
        error = (tensor.double() - again[key].double()).abs()
        allowed = ROUNDING_SHARE * (tolerance["atol"] + tolerance["rtol"] * tensor.double().abs())
        if (error > allowed).any():
            excess = (error / allowed).max().item() * ROUNDING_SHARE
            raise IllConditioned(f"{key}: rounding uses {excess:.2f} of the tolerance (error {error.max().item():.1e})")


@contextmanager
def clear_thresholds() -> Iterator[None]:
    """Inside, AdaLoRA's rank allocator may prune only where the scores leave a clear gap.

    A cut between two nearly equal scores would make the kept ranks depend on rounding.
    """
    original = torch.kthvalue

    def checked(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        ordered = scores.sort().values
        if k < len(ordered) and ordered[k] - ordered[k - 1] < 0.01 * ordered[k]:
            raise IllConditioned(f"scores {ordered[k - 1]} and {ordered[k]} are too close to cut between")
        return original(scores, k=k)

    torch.kthvalue = checked
    try:
        yield
    finally:
        torch.kthvalue = original
