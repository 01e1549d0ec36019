"""Choosing which adapters run: for the whole model, or for every row of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from core.adapters.host import RowGroups
from core.adapters.inject import ModelAdapters, activate, adapters_of, known, unmerged
from core.errors import AdapterError


def set_adapter(model: nn.Module, name: str | Sequence[str] | None) -> None:
    """Make one adapter active, or several, whose deltas add up, or with None the bare base.

    Active adapters are also the trainable ones. Raises AdapterError for an unknown name, while merged, and for several
    adapters that each bring their own bias or whole module for the same place.
    """
    names = () if name is None else (name,) if isinstance(name, str) else tuple(dict.fromkeys(name))
    record = known(model, names)
    unmerged(record, "switch adapters")
    check_combination(record, names)
    activate(record, names)


def check_combination(record: ModelAdapters, names: Sequence[str]) -> None:
    """Raise AdapterError when adapters cannot be active together: two that replace the same parameters, two that put
    trained positions before the text, or one whose change depends on the weight that the others change.
    """
    for path, host in record.hosts.items() if len(names) > 1 else ():
        parts = {name: part for name in names if (part := host.adapter(name)) is not None}
        alone = next((name for name, part in parts.items() if not part.is_additive), None)
        if alone is not None and len(parts) > 1:
            raise AdapterError(
                f"Adapter {alone!r} depends on the weights that {' and '.join(set(parts) - {alone})} would change.",
                "Use it by itself.",
            )
        prompts = [name for name, part in parts.items() if part.virtual_tokens]
        if len(prompts) > 1:
            raise AdapterError(
                f"Adapters {' and '.join(map(repr, prompts))} both put trained positions before the text.",
                "Use one of them at a time.",
            )
        owners = [name for name in names if name in host.replacements]
        if len(owners) > 1:
            raise AdapterError(
                f"Adapters {' and '.join(map(repr, owners))} both replace parameters of {path!r}; these do not add up.",
                "Use one of them at a time.",
            )


def adapter_parameters(model: nn.Module, name: str | None = None) -> Iterator[nn.Parameter]:
    """Yield the parameters to train of one adapter, or of all of them; each once, in the order of the model."""
    record = known(model, () if name is None else (name,))
    seen: set[int] = set()
    for host in record.hosts.values():
        for owner in record.configs if name is None else (name,):
            for parameter in host.trainable(owner):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter


def adapter_rates(model: nn.Module, name: str) -> Iterator[tuple[nn.Parameter, bool, float]]:
    """Yield (parameter, whether weight decay pulls it, its learning rate in that of the run) of one adapter."""
    record = known(model, (name,))
    owners = {
        id(parameter): adapter
        for host in record.hosts.values()
        if (adapter := host.adapter(name)) is not None
        for parameter in adapter.trainable()
    }
    for parameter in adapter_parameters(model, name):
        owner = owners.get(id(parameter))
        if owner is None:  # replaced: a head, a bias, or a weight of the base
            yield parameter, parameter.ndim >= 2, 1.0
        else:
            yield parameter, owner.weight_decays(parameter), owner.lr_scale(parameter)


@contextmanager
def adapter_rows(model: nn.Module, names: Sequence[str | None] | RowGroups) -> Iterator[None]:
    """Inside, row i of every batch runs with adapter `names[i]`; None is the bare base.

    Whoever comes back with the same rows again and again makes them once, by `group_rows`.

    The base runs once over the whole batch and each adapter over its own rows, so results equal single runs. Raises
    AdapterError for an unknown name and while merged, and in the forward pass when the batch has another size.
    """
    groups = names if isinstance(names, RowGroups) else group_rows(model, names)
    record = known(model, [name for name, _ in groups.groups])
    unmerged(record, "use an adapter per row")
    before = {path: host.rows for path, host in record.hosts.items()}
    for host in record.hosts.values():
        host.rows = groups
    try:
        yield
    finally:
        for path, host in adapters_of(model).hosts.items():
            host.rows = before.get(path)


def group_rows(model: nn.Module, names: Sequence[str | None]) -> RowGroups:
    """Which rows each adapter serves, for `adapter_rows`; what it works out of them is kept with it."""
    device = next(model.parameters()).device
    distinct = dict.fromkeys(name for name in names if name is not None)
    rows = {name: [row for row, own in enumerate(names) if own == name] for name in distinct}
    groups = tuple((name, torch.tensor(own, device=device)) for name, own in rows.items())
    return RowGroups(len(names), groups, tuple(names))
