"""What a kind of job is: a function of its context, and what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.registry import Registry
from studio.context import JobContext
from studio.tables import Row


@dataclass(frozen=True)
class Outcome:
    """What a job made: facts for the page, and rows that are filed in the transaction that ends the job."""

    result: Mapping[str, Any]
    rows: tuple[Row, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class Kind:
    """A registered kind. Jobs that need a device run one a device; the others run beside them, one at a time."""

    run: Callable[[JobContext], Outcome]
    needs_device: bool
    needs_network: bool


kinds: Registry[Kind] = Registry("kind of job")


def job_kind(name: str, *, needs_device: bool = True, needs_network: bool = False) -> Callable[..., Any]:
    """Return a decorator that registers a function from JobContext to Outcome as the kind `name`."""

    def add(run: Callable[[JobContext], Outcome]) -> Callable[[JobContext], Outcome]:
        kinds.register(name)(Kind(run, needs_device, needs_network))
        return run

    return add
