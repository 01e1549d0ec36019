"""Putting adapters on a model and taking them off again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from core.adapters.base import LayerSettings, Places, adapters, layer_kind, layer_size, weight_like
from core.adapters.host import AdaptedModule, Replacement
from core.adapters.rule import TrainingRule
from core.adapters.targets import base_modules, check_every_entry, check_runs
from core.config import AdapterConfig
from core.errors import AdapterError, ConfigError
from core.methods import methods, options_of
from core.quantize.linear import QuantizedLinear
from core.selection import pattern_value

_RECORD = "_lora_studio_adapters"  # attribute of the model that holds its ModelAdapters
_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass
class ModelAdapters:
    """What a model knows of its adapters: their configs by name, its wrapped modules by path, and which are active."""

    configs: dict[str, AdapterConfig] = field(default_factory=dict)
    hosts: dict[str, AdaptedModule] = field(default_factory=dict)
    active: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything an adapter needs of a model, worked out and checked before the model is touched."""

    config: AdapterConfig
    modules: Mapping[str, nn.Module]  # the base's modules by path
    places: Places

    @property
    def targets(self) -> list[str]:
        """Paths of the modules that get an adapter."""
        return self.places.targets

    @cached_property
    def options(self) -> Any:
        """The options of the method alone."""
        return options_of(self.config)

    def parameter_settings(self, path: str, loads: bool = False) -> dict[str, LayerSettings]:
        """The settings of single parameters of one module, by their names."""
        names = self.places.parameters[path]
        return {name: self._settings(f"{path}.{name}", self.modules[path].get_parameter(name), loads) for name in names}

    def settings(self, path: str, shared: Any = None, loads: bool = False) -> LayerSettings:
        """The settings of one target, after the patterns; `loads` wants memory also where the base has none."""
        return self._settings(path, weight_like(self.modules[path]), loads, shared)

    def _settings(self, path: str, weight: torch.Tensor, loads: bool, shared: Any = None) -> LayerSettings:
        config = self.config
        return LayerSettings(
            r=pattern_value(config.rank_pattern, path, config.r),
            lora_alpha=pattern_value(config.alpha_pattern, path, config.lora_alpha),
            lora_dropout=config.lora_dropout,
            use_rslora=config.use_rslora,
            device=_device(weight, loads),
            dtype=torch.float64 if weight.dtype == torch.float64 else torch.float32,
            options=self.options,
            shared=shared,
        )


def adapters_of(model: nn.Module) -> ModelAdapters:
    """The record of a model's adapters; an empty one for a model without."""
    record = model.__dict__.get(_RECORD)
    return record if isinstance(record, ModelAdapters) else ModelAdapters()


def known(model: nn.Module, names: Iterable[str]) -> ModelAdapters:
    """The record of a model after checking that it has these adapters; AdapterError names those it has."""
    record = adapters_of(model)
    for name in names:
        if name not in record.configs:
            have = ", ".join(map(repr, record.configs)) or "none"
            raise AdapterError(f"The model has no adapter {name!r}.", f"It has: {have}.")
    return record


def unmerged(record: ModelAdapters, action: str) -> None:
    """Raise AdapterError when adapters are merged into the weights, where `action` would go wrong silently."""
    if record.merged:
        raise AdapterError(f"Cannot {action} while {', '.join(record.merged)} is merged.", "Call unmerge(model) first.")


def inject(model: nn.Module, config: AdapterConfig, name: str = "default", seed: int | None = None) -> list[str]:
    """Add an adapter to a model and make it the only active one; the base is frozen.

    Returns the names of the adapted modules. `seed` makes the start values repeatable, whatever the device; without it
    they come from torch's global generator. A second call adds a second, named adapter and never stacks silently.
    Raises ConfigError when nothing matches, a rank is larger than its layer, or the method is unknown.
    """
    plan = plan_adapter(model, config, name)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    attach(model, plan, name, generator=generator)
    return plan.targets


def plan_adapter(model: nn.Module, config: AdapterConfig, name: str, is_strict: bool = True) -> Plan:
    """Work out what an adapter goes on, and check that it can be added, without changing the model.

    `is_strict` also refuses what is legal but most likely a mistake: ranks above a layer's size, entries of
    target_modules that match nothing, and layers that are never run.
    """
    method = adapters.get(config.method)
    record = adapters_of(model)
    unmerged(record, "add an adapter")
    _check_name(record, name)
    modules = base_modules(model)
    plan = Plan(config, modules, method.places(model, modules, config))
    for path in plan.targets:
        plan.settings(path)  # a bad pattern shows now, not when half of the model is wrapped
        _check_kind(config.method, path, modules[path])
    for path, names in ({path: ["weight"] for path in plan.places.saved} | plan.places.parts).items():
        _check_dense(path, modules[path], names)
    if is_strict:
        check_every_entry(modules, config)
        check_runs((*plan.targets, *plan.places.saved), modules)
        for path in plan.targets:
            methods.get(config.method).check_layer(config, path, *layer_size(modules[path]))
    return plan


def _check_kind(method: str, path: str, base: nn.Module) -> None:
    kind, about = layer_kind(base), methods.get(method)
    if kind not in about.layers:
        raise ConfigError(f"{about.title} cannot adapt {path!r}, which is of kind {kind}.", "Leave this layer out.")


def _check_dense(path: str, base: nn.Module, names: Iterable[str]) -> None:
    """Raise ConfigError when a weight that is to train whole is quantised; a quantised layer's bias may train."""
    if "weight" in names and any(isinstance(module, QuantizedLinear) for module in base.modules()):
        raise ConfigError(
            f"{path!r} is quantised, so its weight cannot train.", "Set quantization to none, or leave this layer out."
        )


def attach(
    model: nn.Module,
    plan: Plan,
    name: str,
    generator: torch.Generator | None = None,
    loads: bool = False,
) -> None:
    """Carry out a plan. With `loads` the tensors are left unfilled, for whoever reads them from a file."""
    method = adapters.get(plan.config.method)
    record = adapters_of(model)
    model.__dict__[_RECORD] = record
    model.requires_grad_(False)
    shared = method.shared({path: plan.modules[path] for path in plan.targets}, plan.config, generator)
    for path in plan.targets:
        adapter = method.from_base(plan.modules[path], plan.settings(path, shared, loads))
        if not loads:
            adapter.reset_parameters(generator)
        host_of(model, record, path).add(name, adapter)
    for path in plan.places.parameters:
        adapter = method.on_parameters(plan.modules[path], plan.parameter_settings(path, loads))
        if not loads:
            adapter.reset_parameters(generator)
        host_of(model, record, path).add(name, adapter)
    _add_replacements(model, record, plan, name, loads)
    record.configs[name] = plan.config
    activate(record, (name,))


def host_of(model: nn.Module, record: ModelAdapters, path: str) -> AdaptedModule:
    """The wrapper at a path, put in place when there is none yet."""
    if path not in record.hosts:
        parent, leaf = _locate(model, path)
        record.hosts[path] = AdaptedModule(parent.get_submodule(leaf))
        setattr(parent, leaf, record.hosts[path])
    return record.hosts[path]


def activate(record: ModelAdapters, names: tuple[str, ...]) -> None:
    """Make these adapters the active and the trainable ones."""
    trains = {name: name in names for name in (*record.active, *names)}
    for host in record.hosts.values():
        host.active = names
        for name, trained in trains.items():
            for parameter in host.trainable(name):
                if parameter.requires_grad is not trained:
                    parameter.requires_grad_(trained)
    record.active = names


def remove_adapter(model: nn.Module, name: str) -> None:
    """Take an adapter off; modules that have none left are the base's own again."""
    record = known(model, (name,))
    unmerged(record, "remove an adapter")
    detach(model, record, name)


def detach(model: nn.Module, record: ModelAdapters, name: str) -> None:
    """Drop an adapter from a model's modules and its record."""
    for path in list(reversed(record.hosts)):
        host = record.hosts[path]
        host.remove(name)
        if not host.names():
            parent, leaf = _locate(model, path)
            setattr(parent, leaf, host.base_layer)
            del record.hosts[path]
    record.configs.pop(name, None)
    record.active = tuple(other for other in record.active if other != name)


def training_rule(model: nn.Module, name: str, total_steps: int) -> TrainingRule:
    """The rule by which an adapter's method trains; ConfigError when the run is too short for it."""
    record = known(model, (name,))
    config = record.configs[name]
    methods.get(config.method).check_steps(config, total_steps)
    found = {path: part for path, host in record.hosts.items() if (part := host.adapter(name)) is not None}
    rule = adapters.get(config.method).rule(found, config, total_steps)
    rule.reconfigure = lambda changed: record.configs.update({name: changed})
    return rule


def adapter_names(model: nn.Module) -> list[str]:
    """The names of a model's adapters, in the order they were added."""
    return list(adapters_of(model).configs)


def adapter_config(model: nn.Module, name: str = "default") -> AdapterConfig:
    """The config an adapter was made with."""
    return known(model, (name,)).configs[name]


def _check_name(record: ModelAdapters, name: str) -> None:
    if not _NAME.fullmatch(name) or hasattr(nn.ModuleDict, name):
        raise AdapterError(f"{name!r} cannot be the name of an adapter.", "Use letters, digits, '-' and '_'.")
    if name in record.configs:
        raise AdapterError(f"The model already has an adapter {name!r}.", "Use another name, or remove it first.")


def _add_replacements(model: nn.Module, record: ModelAdapters, plan: Plan, name: str, loads: bool) -> None:
    copies: dict[int, nn.Parameter] = {}  # a parameter that two modules share stays shared
    for path in plan.places.saved:
        keys, originals = zip(*plan.modules[path].named_parameters(), strict=True)
        host_of(model, record, path).add(name, Replacement(keys, [_copy(original, loads) for original in originals]))
    for path, names in plan.places.parts.items():
        own = []
        for original in map(plan.modules[path].get_parameter, names):
            if id(original) not in copies:
                copies[id(original)] = _copy(original, loads)
            own.append(copies[id(original)])
        host_of(model, record, path).add(name, Replacement(names, own))


def _copy(original: nn.Parameter, loads: bool) -> nn.Parameter:
    dtype = torch.float64 if original.dtype == torch.float64 else torch.float32
    if loads:
        return nn.Parameter(torch.empty(original.shape, dtype=dtype, device=_device(original, loads)))
    return nn.Parameter(original.detach().to(dtype=dtype, copy=True))


def _device(weight: torch.Tensor, loads: bool) -> torch.device:
    return torch.device("cpu") if loads and weight.device.type == "meta" else weight.device


def _locate(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the one at `path`, seen through wrappers, and the last part of the path."""
    *parents, leaf = path.split(".")
    module = model
    for part in parents:
        module = module.get_submodule(part)
        while isinstance(module, AdaptedModule):
            module = module.base_layer
    return module, leaf
