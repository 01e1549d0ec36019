"""A named collection of implementations, so that a new method, format or task is one new file."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Generic, TypeVar

from core.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to implementations of one kind.

    >>> methods: Registry[type] = Registry("adapter method")
    >>> @methods.register("lora")
    ... class LoRALayer: ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under `name`."""

        def add(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return add

    def get(self, name: str) -> T:
        """Return the implementation called `name`; ConfigError names the nearest one when there is none."""
        if name in self._items:
            return self._items[name]
        near = get_close_matches(name, self._items, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(self.names())}."
        raise ConfigError(f"There is no {self.kind} {name!r}.", hint)

    def names(self) -> list[str]:
        """The registered names, in the order of registration."""
        return list(self._items)
