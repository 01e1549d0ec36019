"""Folding adapters into the weights of a model in memory, and taking them out again bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from core.adapters.inject import known, unmerged
from core.adapters.switch import check_combination
from core.config import AdapterConfig
from core.errors import AdapterError
from core.methods import methods


def merge(model: nn.Module, names: str | Sequence[str] | None = None) -> None:
    """Fold adapters into the weights: the active ones, or those named. Nothing is left of their cost afterwards.

    The sums are float64 and are rounded to the dtype of the weight once. The original weights are kept, so a merged
    model needs memory for both; a weight that was tied to another is untied, unless both were trained as one.
    Raises AdapterError for an adapter of a method that is no change of weights.
    """
    record = known(model, _names(names))
    unmerged(record, "merge")
    chosen = record.active if names is None else _names(names)
    if not chosen:
        raise AdapterError("No adapter is active, so there is nothing to merge.", "Call set_adapter first.")
    check_combination(record, chosen)
    for name in chosen:
        check_mergeable(record.configs[name])
    tied: dict[int, nn.Parameter] = {}
    try:
        for host in record.hosts.values():
            host.merge(chosen, tied)
    except BaseException:
        for host in record.hosts.values():
            host.unmerge()
        raise
    record.merged = chosen


def check_mergeable(config: AdapterConfig) -> None:
    """Raise AdapterError for a method whose change does not fold into the weights."""
    method = methods.get(config.method)
    if not method.merges:
        raise AdapterError(method.why_unmergeable(), "Use it as an adapter.")


def unmerge(model: nn.Module) -> None:
    """Put the original weights back, bit for bit; nothing happens when the model is not merged."""
    record = known(model, ())
    for host in record.hosts.values():
        host.unmerge()
    record.merged = ()


def _names(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())
