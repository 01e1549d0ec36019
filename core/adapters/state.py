"""The tensors of an adapter under PEFT's names, out of a model and into it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from core.adapters.inject import known, unmerged
from core.errors import AdapterError

PREFIX = "base_model.model."  # PEFT's own two wrappers, in front of the module's path
SHARED_PREFIX = "base_model."  # of a tensor that belongs to no layer, such as VeRA's projections
SHOWN = 6  # differences listed in an error


def live_tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The adapter's own tensors, not copies, by their stored names.

    One that several layers share, as in LoRA-drop, is there for each of them, since peft looks for it there; the copy
    of a weight that the base ties is there once.
    """
    record = known(model, (name,))
    found: dict[str, Tensor] = {}
    copies: set[int] = set()
    for path, host in record.hosts.items():
        for key, tensor in host.tensors(name):
            if id(tensor) not in copies:
                found[key if key.startswith(SHARED_PREFIX) else f"{PREFIX}{path}.{key}"] = tensor
        replaced = host.replacement(name)
        copies |= set() if replaced is None else {id(copy) for copy in replaced.copies}
    return found


def stored_tensors(model: nn.Module, name: str, keys: Collection[str]) -> dict[str, Tensor]:
    """Those that a file with these names has to have: of one that layers share, one name of it is enough."""
    live = live_tensors(model, name)
    present = {id(tensor) for key, tensor in live.items() if key in keys}
    return {key: tensor for key, tensor in live.items() if key in keys or id(tensor) not in present}


def adapter_state_dict(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """Copies of an adapter's tensors, by PEFT's names."""
    return {key: tensor.detach().clone() for key, tensor in live_tensors(model, name).items()}


@torch.no_grad()
def load_adapter_state_dict(model: nn.Module, state: Mapping[str, Tensor], name: str = "default") -> None:
    """Copy tensors into an adapter; AdapterError lists the names and shapes that differ, and nothing is copied.

    Nor while adapters are merged: what a model says would stay that of the tensors before.
    """
    unmerged(known(model, (name,)), "load an adapter's tensors")
    own = stored_tensors(model, name, state.keys())
    check_shapes({key: tuple(value.shape) for key, value in own.items()}, {k: tuple(v.shape) for k, v in state.items()})
    for key, tensor in own.items():
        tensor.copy_(state[key])


def check_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raise AdapterError when names or shapes differ, listing the first differences of each kind."""
    problems = [
        *_listing("missing", [key for key in expected if key not in found]),
        *_listing("not of this adapter", [key for key in found if key not in expected]),
        *_listing(
            "of another shape",
            [f"{k} {found[k]} instead of {expected[k]}" for k in expected if k in found and found[k] != expected[k]],
        ),
    ]
    if problems:
        raise AdapterError(
            f"The adapter's tensors do not fit: {'; '.join(problems)}.",
            "Use the base model, and the settings, that the adapter was trained with.",
        )


def _listing(what: str, entries: Iterable[str]) -> list[str]:
    entries = [entry.removeprefix(PREFIX) for entry in entries]
    if not entries:
        return []
    more = f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    return [f"{len(entries)} {what} ({', '.join(entries[:SHOWN])}{more})"]
