"""What can be changed so that a failed job succeeds: a few concrete settings a kind of failure, each worked out.

A remedy without changes means to try the same job again; it goes on from its last checkpoint. Any other one starts a
copy of the job with the change applied. What is offered against a lack of memory has been estimated to fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.config import TrainConfig, from_dict, to_dict
from core.errors import ConfigError
from core.quantize.size import NONE
from studio import failures
from studio.views import PlanView, RemedyView

AGAIN = "again"
MOST = 3  # remedies that are offered at once
SAFE = 0.9  # of the free memory that a remedy may be estimated to need
STEP_DOWN = 0.8  # of the first estimate, where that had promised a fit and was wrong
SHORTEST = 64  # tokens
LOWER = 10.0  # the learning rate is divided by this


@dataclass(frozen=True)
class Case:
    """A failed training run: its settings, what a plan says of any settings, and what the automatic rate came to."""

    config: TrainConfig
    plan: Callable[[TrainConfig], PlanView]
    learning_rate: float


def remedies(kind: str, case: Case | None) -> list[RemedyView]:
    """What to offer after a failure of `kind`, the most promising first; `case` is None unless a training failed."""
    if case is None:
        return [RemedyView(AGAIN, "Try it again.", {})]
    found = list(_BY_KIND.get(kind, _nothing)(case))
    return [*found[:MOST], RemedyView(AGAIN, "Try it again; it goes on from its last checkpoint.", {})]


def changed(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """`config` with settings such as {"data.max_length": 512} replaced; ConfigError for an unknown or bad one."""
    values = to_dict(config)
    for path, value in changes.items():
        *sections, leaf = path.split(".")
        section = values
        for name in sections:
            if not isinstance(section.get(name), dict):
                raise ConfigError(f"There is no setting {path!r}.", "Write it as in the job's YAML: data.max_length.")
            section = section[name]
        section[leaf] = value
    return from_dict(TrainConfig, values)


def _nothing(case: Case) -> Iterator[RemedyView]:
    yield from ()


def _less_memory(case: Case) -> Iterator[RemedyView]:
    now = case.plan(case.config)
    budget = min(SAFE * now.memory_free_bytes, STEP_DOWN * now.memory_total_bytes)
    ladders = (_smaller_batches(now), _quantised(case), _shorter(now))
    alone = (_first_that_fits(case, budget, now, ladder) for ladder in ladders)
    found = [remedy for remedy in alone if remedy is not None]
    yield from found or _all_together(case, budget, now)


def _smaller_batches(now: PlanView) -> list[dict[str, Any]]:
    size, ladder = now.micro_batch_size, []
    while size > 1:
        size //= 2
        ladder.append({"micro_batch_size": size})
    return ladder


def _shorter(now: PlanView) -> list[dict[str, Any]]:
    length, ladder = now.max_length, []
    while length > SHORTEST:
        length = max(SHORTEST, length // 2)
        ladder.append({"data.max_length": length})
    return ladder


def _quantised(case: Case) -> list[dict[str, Any]]:
    return [{"quantization": "nf4"}] if case.config.quantization == NONE else []


def _first_that_fits(case: Case, budget: float, now: PlanView, ladder: list[dict[str, Any]]) -> RemedyView | None:
    for changes in ladder:
        plan = _try(case, changes)
        if plan is not None and plan.memory_total_bytes <= budget:
            return _memory_remedy(changes, plan, now)
    return None


def _all_together(case: Case, budget: float, now: PlanView) -> Iterator[RemedyView]:
    """Where no single change is enough: the smallest batches, 4 bits, and the longest examples that then fit."""
    start: dict[str, Any] = {"micro_batch_size": 1}
    for first in ({**start, "quantization": "nf4"}, start):
        ladder = [first, *({**first, **shorter} for shorter in _shorter(now))]
        remedy = _first_that_fits(case, budget, now, ladder)
        if remedy is not None:
            yield remedy
            return


def _try(case: Case, changes: Mapping[str, Any]) -> PlanView | None:
    """The plan of a change; None for one that this model or method does not allow."""
    try:
        plan = case.plan(changed(case.config, changes))
    except ConfigError:
        return None
    return plan if plan.can_start else None


def _memory_remedy(changes: Mapping[str, Any], plan: PlanView, now: PlanView) -> RemedyView:
    named = ", ".join(f"{name} = {value}" for name, value in changes.items())
    new, old = (_size(view.memory_total_bytes) for view in (plan, now))
    return RemedyView("memory:" + ",".join(changes), f"Set {named}: about {new} instead of {old}.", dict(changes))


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.1f} MiB"


def _lower_rate(case: Case) -> Iterator[RemedyView]:
    rate = float(f"{case.learning_rate / LOWER:.1e}")
    yield RemedyView("rate", f"Lower the learning rate to {rate:g}.", {"optim.learning_rate": rate})
    if not case.config.optim.max_grad_norm:
        yield RemedyView("clip", "Scale down gradients longer than 1.", {"optim.max_grad_norm": 1.0})
    if case.config.dtype == "bfloat16":
        yield RemedyView("float32", "Compute in float32.", {"dtype": "float32"})


def _train_more(case: Case) -> Iterator[RemedyView]:
    if case.config.data.max_length:
        yield RemedyView("length", "Let the longest example be picked from the data.", {"data.max_length": 0})
    if case.config.data.completion_only:
        yield RemedyView("texts", "Train on whole texts, not on the answers only.", {"data.completion_only": False})


def _less_disk(case: Case) -> Iterator[RemedyView]:
    if case.config.keep_checkpoints > 1:
        yield RemedyView("keep", "Keep only the newest checkpoint beside the best one.", {"keep_checkpoints": 1})


def _float32(case: Case) -> Iterator[RemedyView]:
    if case.config.dtype != "float32":
        yield RemedyView("float32", "Compute in float32.", {"dtype": "float32"})


def _on_the_cpu(case: Case) -> Iterator[RemedyView]:
    yield RemedyView("cpu", "Train on the processor: slow, but it needs no GPU.", {"device": "cpu"})


_BY_KIND: Mapping[str, Callable[[Case], Iterator[RemedyView]]] = {
    failures.GPU_MEMORY: _less_memory,
    failures.HOST_MEMORY: _less_memory,
    failures.KILLED: _less_memory,
    failures.DISK_FULL: _less_disk,
    failures.DIVERGED: _lower_rate,
    failures.NOTHING_TRAINED: _train_more,
    failures.NUMBER_FORMAT: _float32,
    failures.GPU_LOST: _on_the_cpu,
}
