"""The LoRA factors of every row of a batch side by side, so that many adapters run as two batched products.

One adapter after the other, each on its own rows, costs a handful of small kernels an adapter and layer; a batch of
eight rows with eight adapters would spend most of its time on them (Chen et al. 2023, Punica, batch the same way).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.adapters.base import Adapter
from core.adapters.lora import LoRA

ROWS_AN_ADAPTER = 4  # above that the factors' copies cost more than they save


@dataclass(frozen=True)
class RowStack:
    """What the rows' adapters add to a layer's output: A is (B, in, r), B (B, r, out), zero where a row has none."""

    a: Tensor
    b: Tensor
    scale: float
    versions: tuple[tuple[int, int], ...]  # of the adapters' tensors when they were stacked

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """out + scale x A B, for x (B, T, in) and out (B, T, out)."""
        return torch.baddbmm(out, torch.bmm(x.to(out.dtype), self.a), self.b, alpha=self.scale)


def stack_rows(adapters: Sequence[Adapter | None], out: Tensor, before: RowStack | None) -> RowStack | None:
    """The stack of one layer's adapters, by row, or `before` while that holds; None where they do not add up so."""
    found = [adapter for adapter in adapters if adapter is not None]
    if not all(isinstance(adapter, LoRA) and _is_plain(adapter) for adapter in found):
        return None
    present = [adapter for adapter in found if isinstance(adapter, LoRA)]
    versions = tuple((id(part), part._version) for adapter in present for part in (adapter.lora_A, adapter.lora_B))
    if before is not None and before.versions == versions and before.a.dtype == out.dtype:
        return before
    distinct = {id(adapter): adapter for adapter in present}
    if not distinct or len(adapters) > ROWS_AN_ADAPTER * len(distinct):
        return None
    return _stacked(adapters, list(distinct.values()), out, versions)


def _is_plain(adapter: LoRA) -> bool:
    """Whether the output is x A^T B^T and nothing else: not a method on top of LoRA, and no dropout."""
    kind = type(adapter)
    adds = kind.forward is LoRA.forward and kind.delta_weight is LoRA.delta_weight and not adapter.replaces_parameters
    return adds and not (adapter.training and adapter.dropout)


def _stacked(
    adapters: Sequence[Adapter | None], distinct: list[LoRA], out: Tensor, versions: tuple[tuple[int, int], ...]
) -> RowStack:
    scales = {adapter.scale for adapter in distinct}
    scale = scales.pop() if len(scales) == 1 else 1.0
    rank = max(adapter.lora_A.shape[0] for adapter in distinct)
    d_in, d_out = distinct[0].lora_A.shape[1], distinct[0].lora_B.shape[0]
    a = torch.zeros(len(distinct) + 1, d_in, rank, dtype=out.dtype, device=out.device)  # the last one adds nothing
    b = torch.zeros(len(distinct) + 1, rank, d_out, dtype=out.dtype, device=out.device)
    for index, adapter in enumerate(distinct):
        own = adapter.lora_A.shape[0]
        a[index, :, :own] = adapter.lora_A.T
        b[index, :own] = adapter.lora_B.T * (adapter.scale / scale)
    place = {id(adapter): index for index, adapter in enumerate(distinct)}
    rows = [place.get(id(adapter), len(distinct)) for adapter in adapters]
    return RowStack(a[rows], b[rows], scale, versions)
