"""Training and evaluation mode of a model, for a while, and the modules that have one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_KNOWN = "_modules_below"  # attribute of a model: the modules found in it, and the children of all


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model in training or evaluation mode inside, and every module back in its own afterwards."""
    others = [module for module in all_modules(model) if module.training != training]
    _set(others, training)
    try:
        yield
    finally:
        _set(others, not training)


def all_modules(model: nn.Module) -> list[nn.Module]:
    """What `model.modules()` gives, in the same order; every step asks, so a walk serves until a module has others.

    It is kept by the model, and without the model itself, which would then never be freed but by a search for cycles.
    """
    below, children = model.__dict__.get(_KNOWN, ((), None))
    modules = [model, *below]
    if _children(modules) != children:
        modules = _walk(model)
        model.__dict__[_KNOWN] = modules[1:], _children(modules)
    return modules


def _children(modules: list[nn.Module]) -> list[nn.Module | None]:
    return [child for module in modules for child in module._modules.values()]


def _walk(model: nn.Module) -> list[nn.Module]:
    found: dict[nn.Module, None] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting.extend(child for child in reversed(module._modules.values()) if child is not None)
    return list(found)


def _set(modules: list[nn.Module], training: bool) -> None:
    for module in modules:
        object.__setattr__(module, "training", training)  # nn.Module's own looks for a parameter of that name first
