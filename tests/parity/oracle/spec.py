"""The vocabulary of the case tables: cases, adapters and steps.

A table entry is data. It names a model, the adapters with the keyword arguments of their PEFT configs, and the steps.
Everything numeric (weights, inputs, expectations) follows from the case's name, so an entry never holds a number that
somebody would have to keep in step with another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Step = dict[str, Any]

#: Steps that compare something; the oracle names their expectation after the op and its place in the list.
COMPARING = ("forward", "forward_mixed", "grads", "train", "base_weights", "state_dict")


@dataclass(frozen=True)
class Adapter:
    """One folder below `adapters/`.

    `recipe` fills the freshly created adapter before PEFT saves it; `edits` then change the saved files, for the cases
    whose point is a config or a file that PEFT would not write today.
    """

    method: str
    config: dict[str, Any]
    recipe: Callable[..., None] | None = None
    edits: tuple[Callable[[Path], None], ...] = ()
    converted: bool = False


@dataclass(frozen=True)
class Model:
    """A model of the format page with its `model_config`, and how its inputs are drawn."""

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    batch: int = 3
    #: Sequence length of token inputs, and whether they come with a mask that hides the tail of some rows.
    length: int = 6
    masked: bool = False
    #: The smallest token id drawn; 1 excludes BERT's padding token.
    first_token: int = 0


@dataclass(frozen=True)
class Case:
    """One case folder.

    `inert` says that the adapters must not change the output (alpha 0, a fresh adapter, an empty active set), which
    switches off the guard against vacuous cases. `tolerance` replaces the format's default.
    """

    name: str
    model: Model
    adapters: dict[str, Adapter]
    steps: list[Step]
    inert: bool = False
    tolerance: dict[str, float] | None = None
    #: Endings of keys whose gradient is zero by nature, such as the bias of attention's keys.
    still: tuple[str, ...] = ()
    #: Draws different random numbers, for a case whose first draw falls on a discontinuity (a tie, a sign near zero).
    salt: int = 0


def lora(*targets: str, **config: Any) -> Adapter:
    """A LoRA adapter; `targets` is a list of suffixes, a regex goes into `target_modules`."""
    return _adapter("LORA", targets, {"r": 4, **config})


def dora(*targets: str, **config: Any) -> Adapter:
    return lora(*targets, use_dora=True, **config)


def adalora(*targets: str, **config: Any) -> Adapter:
    return _adapter("ADALORA", targets, {"init_r": 4, "target_r": 2, "total_step": 10, **config})


def ia3(*targets: str, feedforward: list[str] | str = (), **config: Any) -> Adapter:
    feedforward = feedforward if isinstance(feedforward, str) else list(feedforward)
    return _adapter("IA3", targets, {"feedforward_modules": feedforward, **config})


def loha(*targets: str, **config: Any) -> Adapter:
    return _adapter("LOHA", targets, {"r": 2, **config})


def lokr(*targets: str, **config: Any) -> Adapter:
    return _adapter("LOKR", targets, {"r": 2, **config})


def _adapter(method: str, targets: tuple[str, ...], config: dict[str, Any]) -> Adapter:
    special = {key: config.pop(key) for key in ("recipe", "edits", "converted") if key in config}
    if targets:
        config["target_modules"] = list(targets)
    return Adapter(method, config, **special)


def load(adapter: str) -> Step:
    return {"op": "load", "adapter": adapter}


def active(*adapters: str) -> Step:
    return {"op": "set_active", "adapters": list(adapters)}


def forward() -> Step:
    return {"op": "forward"}


def mixed(*adapter_names: str) -> Step:
    return {"op": "forward_mixed", "adapter_names": list(adapter_names)}


def grads() -> Step:
    return {"op": "grads"}


def train(optimizer: str, lr: float, steps: int = 4, weight_decay: float = 0.0) -> Step:
    return {"op": "train", "optimizer": optimizer, "lr": lr, "weight_decay": weight_decay, "steps": steps}


def disable() -> Step:
    return {"op": "disable"}


def enable() -> Step:
    return {"op": "enable"}


def merge(*adapters: str, safe: bool = False) -> Step:
    step: Step = {"op": "merge"}
    if adapters:
        step["adapters"] = list(adapters)
    if safe:
        step["safe"] = True
    return step


def unmerge() -> Step:
    return {"op": "unmerge"}


def base_weights() -> Step:
    return {"op": "base_weights"}


def state_dict(adapter: str) -> Step:
    return {"op": "state_dict", "adapter": adapter}


def weighted(name: str, adapters: list[str], weights: list[float], combination_type: str | None = None,
             **options: Any) -> Step:
    step: Step = {"op": "weighted", "name": name, "adapters": adapters, "weights": weights}
    if combination_type is not None:
        step["combination_type"] = combination_type
    return step | options


def scale(adapter: str, factor: float) -> Step:
    return {"op": "scale", "adapter": adapter, "factor": factor}


def delete(adapter: str) -> Step:
    return {"op": "delete", "adapter": adapter}


def fails(step: Step, *contains: str, lenient: bool = False) -> Step:
    """The inner step must fail. `lenient`: PEFT itself only warns or does nothing, and the format page requires more.

    `lenient` is not part of the written case; it makes the generator check where the page goes beyond PEFT.
    """
    outer: Step = {"op": "fails", "step": step}
    if contains:
        outer["contains"] = list(contains)
    return outer | {"_lenient": lenient}


def named(steps: list[Step]) -> list[Step]:
    """The steps with `expect` filled in."""
    return [step | {"expect": f"{step['op']}_{index}"} if step["op"] in COMPARING else step
            for index, step in enumerate(steps)]


def published(step: Step) -> Step:
    """The step as the case holds it, without the generator's own marks."""
    return {key: value for key, value in step.items() if not key.startswith("_")}
