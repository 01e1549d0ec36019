"""Trained positions before a prompt, as tokens with ids of their own: -1, -2, ...

Prompt, prefix and P-tuning put P trained positions before every text. Here these are ordinary tokens of the sequence,
so that padding, positions, batches, the key-value cache and the loss need to know nothing of them; the adapter on the
model's embedding turns their ids into what was trained (`core/adapters/host.py` keeps them from the table itself).
"""

from __future__ import annotations

from torch import nn

from core.adapters.inject import adapters_of


def virtual_ids(model: nn.Module, name: str | None = None) -> tuple[int, ...]:
    """The ids that go before every prompt for adapter `name`, or for the active adapters; empty for most methods."""
    record = adapters_of(model)
    names = record.active if name is None else (name,)
    counts = (
        adapter.virtual_tokens
        for host in record.hosts.values()
        for own in names
        if (adapter := host.adapter(own)) is not None
    )
    return tuple(range(-1, -1 - max(counts, default=0), -1))
