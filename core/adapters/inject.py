"""Putting adapters on a model and taking them off again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from core.adapters.base import LayerSettings, adapter_dtype, adapters, layer_size, method_options
from core.adapters.host import AdaptedModule, Replacement
from core.adapters.targets import base_modules, check_every_entry, find_saved, find_targets
from core.config import AdapterConfig
from core.errors import AdapterError, ConfigError
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
    targets: list[str]  # get an adapter
    saved: list[str]  # are trained whole
    biases: list[str]  # train their bias

    def settings(self, path: str, device: torch.device | None = None, shared: Any = None) -> LayerSettings:
        """The settings of one target, after the patterns."""
        base, config = self.modules[path], self.config
        return LayerSettings(
            r=pattern_value(config.rank_pattern, path, config.r),
            lora_alpha=pattern_value(config.alpha_pattern, path, config.lora_alpha),
            lora_dropout=config.lora_dropout,
            use_rslora=config.use_rslora,
            device=device or base.get_parameter("weight").device,
            dtype=adapter_dtype(base),
            options=method_options(config),
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

    `is_strict` also refuses what is legal but most likely a mistake: ranks above a layer's size, and entries of
    target_modules that match nothing.
    """
    adapters.get(config.method)
    method_options(config)
    record = adapters_of(model)
    unmerged(record, "add an adapter")
    _check_name(record, name)
    modules = base_modules(model)
    targets, saved = find_targets(model, modules, config), find_saved(modules, config)
    plan = Plan(config, modules, targets, saved, _find_biases(modules, config.bias, targets, saved))
    for path in targets:
        plan.settings(path)  # a bad pattern shows now, not when half of the model is wrapped
    if is_strict:
        check_every_entry(modules, config)
        check_ranks(plan)
    return plan


def check_ranks(plan: Plan) -> None:
    """Raise ConfigError when a rank is larger than the smaller side of its layer: it could not add anything."""
    for path in plan.targets:
        d_in, d_out = layer_size(plan.modules[path])
        r = plan.settings(path).r
        if r > min(d_in, d_out):
            raise ConfigError(
                f"Rank {r} is larger than layer {path!r}, which is {d_in} x {d_out}.",
                f"Choose a rank up to {min(d_in, d_out)}, give this layer its own in rank_pattern, or leave it out.",
            )


def attach(
    model: nn.Module,
    plan: Plan,
    name: str,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> None:
    """Carry out a plan. With `device` "meta" the tensors are left unfilled, to be assigned by whoever loads them."""
    method = adapters.get(plan.config.method)
    fills = device is None or device.type != "meta"
    record = adapters_of(model)
    model.__dict__[_RECORD] = record
    model.requires_grad_(False)
    shared = method.shared({path: plan.modules[path] for path in plan.targets}, plan.config, generator)
    for path in plan.targets:
        adapter = method.from_base(plan.modules[path], plan.settings(path, device, shared))
        if fills:
            adapter.reset_parameters(generator)
        host_of(model, record, path).add(name, adapter)
    _add_replacements(model, record, plan, name, device)
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
    for host in record.hosts.values():
        host.active = names
        for name in {*record.active, *names}:
            for parameter in host.trainable(name):
                parameter.requires_grad_(name in names)
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


def _find_biases(modules: Mapping[str, nn.Module], mode: str, targets: list[str], saved: list[str]) -> list[str]:
    """Paths of the modules whose bias trains: none, those with an adapter (`lora_only`), or all of the base's."""
    paths = {"none": [], "lora_only": targets, "all": list(modules)}[mode]
    inside = tuple(f"{path}." for path in saved)
    return [
        path
        for path in paths
        if isinstance(getattr(modules[path], "bias", None), nn.Parameter) and not f"{path}.".startswith(inside or "\0")
    ]


def _add_replacements(
    model: nn.Module, record: ModelAdapters, plan: Plan, name: str, device: torch.device | None
) -> None:
    copies: dict[int, nn.Parameter] = {}  # a parameter that two modules share stays shared
    parts = {path: [key for key, _ in plan.modules[path].named_parameters()] for path in plan.saved}
    parts |= {path: ["bias"] for path in plan.biases}
    for path, keys in parts.items():
        originals = [plan.modules[path].get_parameter(key) for key in keys]
        for original in originals if path in plan.biases else ():
            copies.setdefault(id(original), _copy(original, device))
        own = [copies[id(original)] if path in plan.biases else _copy(original, device) for original in originals]
        host_of(model, record, path).add(name, Replacement(keys, own))


def _copy(original: nn.Parameter, device: torch.device | None) -> nn.Parameter:
    dtype = torch.float64 if original.dtype == torch.float64 else torch.float32
    return nn.Parameter(original.detach().to(device=device or original.device, dtype=dtype, copy=True))


def _locate(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the one at `path`, seen through wrappers, and the last part of the path."""
    *parents, leaf = path.split(".")
    module = model
    for part in parents:
        module = module.get_submodule(part)
        while isinstance(module, AdaptedModule):
            module = module.base_layer
    return module, leaf
