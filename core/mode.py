"""Training and evaluation mode of a model, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
    """What `model.modules()` gives, in the same order, without a generator for each level: every step asks."""
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
