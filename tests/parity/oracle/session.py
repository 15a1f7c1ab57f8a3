"""Performing the steps of a case on a PEFT model."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from .guards import Acting, OutputGuard, Vacuous, check_gradients, check_training
from .models import base_tensors, run
from .spec import Step
from .training import adapter_tensors, gradients, train


class Session:
    """A base model, the adapters loaded into it, and what the steps so far have recorded in `expected`."""

    def __init__(self, base: nn.Module, inputs: dict[str, Tensor], adapters: Path, trainable: set[str],
                 inert: bool = False, still: tuple[str, ...] = (), check_failures: bool = True,
                 load_options: dict[str, object] | None = None) -> None:
        self.base = base
        self.inputs = inputs
        self.adapters = adapters
        self.trainable = trainable
        self.still = still
        self.check_failures = check_failures
        self.load_options = load_options or {}
        self.parameters = list(base_tensors(base))
        self.peft: PeftModel | None = None
        self.enabled = True
        self.merge_order: list[str] = []
        self.asleep: list[str] = []
        self.factors: dict[str, float] = {}
        self.trainings: dict[str, int] = {}
        with torch.no_grad():
            without = run(base, inputs)
        self.outputs = OutputGuard(inert, without)
        self.mixed_outputs = OutputGuard(inert, without)
        self.expected: dict[str, Tensor] = {}

    def perform(self, step: Step) -> None:
        """One step; the fields of a step are the parameters of the method that its op names."""
        fields = {key: value for key, value in step.items() if key not in ("op", "_lenient")}
        if step["op"] == "fails":
            fields["lenient"] = step["_lenient"]
        getattr(self, f"do_{step['op']}")(**fields)

    def record(self, expect: str, result: Tensor | dict[str, Tensor]) -> None:
        named = {expect: result} if isinstance(result, Tensor) else {
            f"{expect}.{key}": tensor for key, tensor in result.items()}
        self.expected |= {key: tensor.detach().clone().contiguous() for key, tensor in named.items()}

    # State of the model.

    def names(self) -> list[str]:
        return list(self.peft.peft_config) if self.peft else []

    def known(self, *adapters: str) -> None:
        """PEFT ignores unknown names in places; a table entry must not use one by mistake."""
        for adapter in adapters:
            if adapter not in self.names():
                raise KeyError(f"no adapter {adapter}")

    def active(self) -> list[str]:
        return list(self.peft.base_model.active_adapters) if self.peft else []

    def merged(self) -> list[str]:
        """The merged adapters in merge order, which no single layer knows: it lacks those that do not target it."""
        names = {name for layer in self.layers() for name in layer.merged_adapters}
        return [name for name in self.merge_order if name in names]

    def layers(self) -> list[BaseTunerLayer]:
        return [module for module in self.peft.modules() if isinstance(module, BaseTunerLayer)] if self.peft else []

    def acting(self) -> Acting:
        """For each layer, the adapters that act there now, each with its scale and the number of times it was trained."""
        if self.peft is None or not self.enabled:
            return {}
        acting = {}
        for place, module in self.peft.named_modules():
            if isinstance(module, BaseTunerLayer):
                names = module.merged_adapters or module.active_adapters
                names = [name for name in names if name in module._all_available_adapter_names()]
            elif isinstance(module, ModulesToSaveWrapper):
                names = module.active_adapters
            else:
                continue
            if names:
                acting[place] = tuple(
                    (name, self.factors.get(name, 1.0), self.trainings.get(name, 0)) for name in names)
        return acting

    def sole_active(self) -> str:
        [name] = self.active()
        return name

    # Steps.

    def do_load(self, adapter: str) -> None:
        folder = str(self.adapters / adapter)
        options = {"adapter_name": adapter, "is_trainable": adapter in self.trainable, **self.load_options}
        if self.peft is None:
            self.peft = PeftModel.from_pretrained(self.base, folder, **options)
        elif adapter in self.names():
            # `load_adapter` would reload the weights; the format page requires what `add_adapter` does.
            self.peft.add_adapter(adapter, PeftConfig.from_pretrained(folder))
        else:
            self.peft.load_adapter(folder, **options)
        self.peft.eval()

    def do_set_active(self, adapters: list[str]) -> None:
        if len(adapters) == 1:
            self.peft.set_adapter(adapters[0])
            return
        self.known(*adapters)
        self.peft.base_model.set_adapter(adapters)
        if adapters:
            self.peft.active_adapter = adapters[0]  # the wrapper's own field holds one name

    def do_forward(self, expect: str) -> None:
        with torch.no_grad():
            output = run(self.peft if self.active() and self.names() else self.base, self.inputs)
        self.outputs.add(self.acting(), output)
        self.record(expect, output)

    def do_forward_mixed(self, adapter_names: list[str], expect: str | None = None) -> None:
        with torch.no_grad():
            output = run(self.peft, self.inputs, adapter_names=adapter_names)
        acting = {str(row): (name,) for row, name in enumerate(adapter_names) if name != "__base__"}
        self.mixed_outputs.add(acting, output)
        if expect:
            self.record(expect, output)

    def do_grads(self, expect: str) -> None:
        result = gradients(self.peft, self.sole_active(), self.inputs)
        check_gradients(result, self.still)
        self.record(expect, result)

    def do_train(self, expect: str, **step: object) -> None:
        name = self.sole_active()
        before = {key: tensor.detach().clone() for key, tensor in adapter_tensors(self.peft, name).items()}
        result = train(self.peft, name, self.inputs, step)
        check_training(before, result, self.still)
        self.trainings[name] = self.trainings.get(name, 0) + 1
        self.record(expect, result)

    def do_disable(self) -> None:
        """PEFT unmerges for good when a disabled model runs. The page requires the merge to return after `enable`, so what
        is merged is recorded, unmerged, and merged again there."""
        self.asleep = self.merged()
        if self.asleep:
            self.peft.base_model.unmerge_adapter()
        self.peft.base_model.disable_adapter_layers()
        self.enabled = False

    def do_enable(self) -> None:
        self.peft.base_model.enable_adapter_layers()
        self.enabled = True
        if self.asleep:
            self.do_merge(self.asleep)
            self.asleep = []

    def do_merge(self, adapters: list[str] | None = None, safe: bool = False) -> None:
        before = self.merged()
        self.merge_order = before + [name for name in adapters or self.active() if name not in before]
        self.peft.base_model.merge_adapter(adapter_names=adapters, safe_merge=safe)

    def do_unmerge(self) -> None:
        self.peft.base_model.unmerge_adapter()

    def do_base_weights(self, expect: str) -> None:
        """The base model's parameters, wherever PEFT has moved them."""
        root = self.peft.base_model.model if self.peft else self.base
        found = {name.replace(".base_layer.", ".").replace(".original_module.", "."): parameter
                 for name, parameter in root.named_parameters() if ".modules_to_save." not in name}
        self.record(expect, {name: found[name] for name in self.parameters})

    def do_state_dict(self, adapter: str, expect: str | None = None) -> None:
        result = get_peft_model_state_dict(self.peft, adapter_name=adapter)
        if expect:
            self.record(expect, result)

    def do_weighted(self, name: str, adapters: list[str], weights: list[float], **options: object) -> None:
        self.peft.base_model.add_weighted_adapter(adapters, weights, adapter_name=name, **options)
        if name in self.active():
            raise Vacuous(f"{name} is active at once")

    def do_scale(self, adapter: str, factor: float) -> None:
        """PEFT scales the active adapters of a layer, and skips embeddings; the page requires one adapter on all layers."""
        for layer in self.layers():
            if isinstance(layer, (LoraLayer, LycorisLayer)) and adapter in layer.scaling:
                layer.scaling[adapter] *= factor
        self.factors[adapter] = self.factors.get(adapter, 1.0) * factor

    def do_delete(self, adapter: str) -> None:
        self.peft.delete_adapter(adapter)
        self.factors.pop(adapter, None)

    def do_fails(self, step: Step, contains: list[str] = (), lenient: bool = False) -> None:
        """Tried on a copy: PEFT often leaves a half-changed model behind, and the page requires it to be unchanged."""
        if not self.check_failures:
            return
        trial = copy.deepcopy(self)
        try:
            trial.perform(step)
        except Exception as error:
            if lenient:
                raise Vacuous(f"{step} is marked lenient, but PEFT raises {error!r}") from error
        else:
            if not lenient:
                raise Vacuous(f"PEFT accepts {step}")
