"""Replacing what makes an adapter's tensors by what it makes: the encoder of P-tuning, the network of prefix tuning."""

from __future__ import annotations

import torch
from torch import nn

from core.adapters.base import adapters
from core.adapters.inject import activate, attach, detach, known, plan_adapter, unmerged
from core.adapters.state import PREFIX, load_adapter_state_dict
from core.errors import AdapterError


@torch.no_grad()
def bake(model: nn.Module, name: str = "default") -> None:
    """Turn an adapter with an encoder into one of plain vectors, which gives the same outputs.

    P-tuning becomes prompt tuning, and prefix tuning loses its projection. Training can go on, but without the encoder.
    Raises AdapterError for an adapter that has none.
    """
    record = known(model, (name,))
    unmerged(record, "bake an adapter")
    config = record.configs[name]
    plain = adapters.get(config.method).baked_config(config)
    if plain is None:
        raise AdapterError(f"Adapter {name!r} has no encoder to bake.", "Use it as it is.")
    tensors = {
        f"{PREFIX}{path}.{key}": tensor.clone()
        for path, host in record.hosts.items()
        if name in host.names()
        for key, tensor in host.tensors(name, baked=True)
    }
    active = record.active
    detach(model, record, name)
    attach(model, plan_adapter(model, plain, name), name, loads=True)
    load_adapter_state_dict(model, tensors, name)
    activate(record, active)
