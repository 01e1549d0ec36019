"""Which modules of a model an adapter goes on: PEFT's matching of names, and clear words when nothing fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches

from torch import nn

from core.adapters.base import Places
from core.adapters.host import AdaptedModule
from core.config import AdapterConfig
from core.conv1d import is_conv1d
from core.errors import ConfigError
from core.quantize.linear import QuantizedLinear
from core.selection import (
    ALL_LINEAR,
    MAMBA_MARK,
    MAMBA_STEP,
    SHARED_EMBEDDING,
    endings,
    is_router,
    is_saved,
    matches,
)

CLASSIFIER_NAMES = ("classifier", "score")  # the heads of transformers' classification models


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, QuantizedLinear)) or is_conv1d(module)


def is_adaptable(module: nn.Module) -> bool:
    """Whether a module is a layer that adapters fit: Linear, Conv1D or Embedding."""
    return _is_linear(module) or isinstance(module, nn.Embedding)


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of the model as it was before any adapter, by their original paths."""
    return dict(_walk(model, "", set()))


def unwrapped(module: nn.Module) -> nn.Module:
    """The base's own module under any wrapper."""
    while isinstance(module, AdaptedModule):
        module = module.base_layer
    return module


def _walk(module: nn.Module, path: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    module = unwrapped(module)
    if id(module) in seen:
        return
    seen.add(id(module))
    if path:
        yield path, module
    for name, child in module.named_children():
        yield from _walk(child, f"{path}.{name}" if path else name, seen)


def find_places(model: nn.Module, modules: Mapping[str, nn.Module], config: AdapterConfig) -> Places:
    """Where the settings put an adapter: its targets, `modules_to_save`, and the biases that train."""
    targets, saved = find_targets(model, modules, config), find_saved(modules, config)
    biases = {path: ["bias"] for path in _find_biases(modules, config.bias, targets, saved)}
    return Places(targets, saved, biases, find_parameters(modules, config.target_parameters))


def find_parameters(modules: Mapping[str, nn.Module], wanted: Sequence[str]) -> dict[str, list[str]]:
    """Parameters by PEFT's rule, the whole name or its end, under the module that owns them.

    Raises ConfigError for an entry that matches nothing, or the weight of a layer, which target_modules is for.
    """
    found: dict[str, list[str]] = {}
    for path, module in modules.items():
        for name, _ in module.named_parameters(recurse=False):
            if wanted and not set(endings(f"{path}.{name}")).isdisjoint(wanted):
                found.setdefault(path, []).append(name)
    known = {ending for path, names in found.items() for name in names for ending in endings(f"{path}.{name}")}
    for entry in wanted:
        if entry not in known:
            raise ConfigError(f"target_parameters {entry!r} matches no parameter.", "See named_parameters().")
    for path in found:
        if is_adaptable(modules[path]):
            raise ConfigError(f"{path!r} is a layer, not a bare parameter.", "Name it in target_modules instead.")
    return found


def _find_biases(modules: Mapping[str, nn.Module], mode: str, targets: list[str], saved: list[str]) -> list[str]:
    """Paths of the modules whose bias trains: none, those with an adapter (`lora_only`), or all of the base's."""
    paths = {"none": [], "lora_only": targets, "all": list(modules)}[mode]
    inside = tuple(f"{path}." for path in saved)
    return [
        path
        for path in paths
        if isinstance(getattr(modules[path], "bias", None), nn.Parameter) and not f"{path}.".startswith(inside or "\0")
    ]


def find_saved(modules: Mapping[str, nn.Module], config: AdapterConfig) -> list[str]:
    """Paths of the modules that `modules_to_save` names; the outermost where one holds another.

    An entry may be absent, since peft lists the usual names of a head; ConfigError when all are.
    """
    found = [path for path in modules if is_saved(path, config.modules_to_save)]
    if config.modules_to_save and not found:
        raise _no_match("modules_to_save", config.modules_to_save, modules)
    return [path for path in found if not any(path.startswith(f"{other}.") for other in found)]


def find_targets(
    model: nn.Module, modules: Mapping[str, nn.Module], config: AdapterConfig, check: bool = True
) -> list[str]:
    """Paths of the modules that get an adapter, in the order of the model.

    Raises ConfigError when a pattern is not a regular expression and, unless `check` is False, when nothing matches or
    a match is of a kind that cannot be adapted.
    """
    found = _match(model, modules, config)
    if not check or (config.target_parameters and not config.target_modules):
        return found
    if not found:
        raise _no_match("target_modules", config.target_modules, modules)
    for path in found:
        _check_kind(path, modules)
    return found


def check_every_entry(modules: Mapping[str, nn.Module], config: AdapterConfig) -> None:
    """Raise ConfigError for an entry of `target_modules` that matches nothing: most likely a slip of the pen."""
    if isinstance(config.target_modules, str):
        return
    known = {ending for path in modules for ending in endings(path)}
    for entry in config.target_modules:
        if entry not in known:
            raise _no_match("target_modules", (entry,), modules)


def check_runs(paths: Iterable[str], modules: Mapping[str, nn.Module]) -> None:
    """Raise ConfigError for layers that a model has and never runs, so that an adapter there would do nothing.

    These are a projection of Mamba, and the embedding that an encoder-decoder keeps for both sides to share.
    """
    paths = list(paths)
    for path in paths:
        if _is_mamba_step(path, modules):
            raise _bypassed(path, modules)
    tables = {path: module for path, module in modules.items() if isinstance(module, nn.Embedding)}
    for path in tables.keys() & set(paths):
        users = [other for other, table in tables.items() if other != path and table.weight is tables[path].weight]
        if path.rpartition(".")[2] == SHARED_EMBEDDING and users:
            raise ConfigError(
                f"{path!r} is never run: its weight is there for {' and '.join(users)}.",
                f"Name {' or '.join(sorted({user.rpartition('.')[2] for user in users}))} instead.",
            )


def _match(model: nn.Module, modules: Mapping[str, nn.Module], config: AdapterConfig) -> list[str]:
    """Paths that are wanted, not excluded, and not in (or the same as) a module that is trained whole."""
    wanted = config.target_modules
    if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
        wanted = all_linear(model, modules)
    rules = (wanted, config.exclude_modules)
    targets, excluded = (rule if isinstance(rule, str) else frozenset(rule) for rule in rules)
    return [
        path
        for path in modules
        if matches(path, targets)
        and not (excluded and matches(path, excluded))
        and not is_saved(path, config.modules_to_save)
    ]


def all_linear(model: nn.Module, modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Every Linear and Conv1D but the output layer, the routers of a mixture, and those that are never run."""
    output = _output_layer(model)
    linear = [path for path, module in modules.items() if _is_linear(module) and module is not output]
    never = (_is_bypassed, _is_mamba_step)
    return tuple(path for path in linear if not is_router(path) and not any(rule(path, modules) for rule in never))


def _output_layer(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    layer = get() if callable(get) else None
    for name in CLASSIFIER_NAMES if layer is None else ():
        layer = layer or getattr(model, name, None)
    return unwrapped(layer) if isinstance(layer, nn.Module) else None


def _is_bypassed(path: str, modules: Mapping[str, nn.Module]) -> bool:
    return isinstance(modules.get(path.rpartition(".")[0]), nn.MultiheadAttention)


def _is_mamba_step(path: str, modules: Mapping[str, nn.Module]) -> bool:
    holder, _, leaf = path.rpartition(".")
    return leaf == MAMBA_STEP and hasattr(modules.get(holder), MAMBA_MARK)


def _bypassed(path: str, modules: Mapping[str, nn.Module]) -> ConfigError:
    around = type(modules[path.rpartition(".")[0]]).__name__
    return ConfigError(
        f"{path!r} is part of a {around}, which reads its weight directly and would ignore an adapter.", "Leave it out."
    )


def _check_kind(path: str, modules: Mapping[str, nn.Module]) -> None:
    if not is_adaptable(modules[path]):
        inner = [name for name, child in modules[path].named_modules() if _is_linear(child)]
        raise ConfigError(
            f"{path!r} is a {type(modules[path]).__name__}; adapters fit Linear, Conv1D and Embedding layers.",
            f"Choose the layers in it: {', '.join(inner[:8])}." if inner else "Leave it out.",
        )
    if _is_bypassed(path, modules):
        raise _bypassed(path, modules)


def _no_match(setting: str, wanted: str | Sequence[str], modules: Mapping[str, nn.Module]) -> ConfigError:
    names = sorted({path.rpartition(".")[2] for path, module in modules.items() if is_adaptable(module)})
    entries = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    near = [match for entry in entries for match in get_close_matches(entry.rpartition(".")[2], names, n=2)]
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"This model has: {', '.join(names[:16])}."
    return ConfigError(f"{setting} {', '.join(map(repr, entries))} matches no layer of this model.", hint)
