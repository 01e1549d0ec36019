"""Gradients of trained factors: sums over all rows, in the factor's own format and in an exact order."""

from __future__ import annotations

import torch
from torch import Tensor

PART = 64  # rows that a CPU sums at once


def wide_product(one: Tensor, other: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """scale * one other, in the format of a parameter: 16-bit operands are summed in float32 and not rounded back."""
    if not one.is_cuda:
        made = _summed_in_parts(one.to(dtype), other.to(dtype))
        return made if scale == 1.0 else made.mul_(scale)
    if dtype != one.dtype and dtype != torch.float32:
        return wide_product(one, other, one.dtype, scale).to(dtype)
    nothing = one.new_empty(1, 1, dtype=dtype)  # as beta is 0, it is not read
    if dtype == one.dtype:
        return torch.addmm(nothing, one, other, beta=0, alpha=scale)
    return torch.addmm(nothing, one, other, out_dtype=dtype, beta=0, alpha=scale)


def _summed_in_parts(one: Tensor, other: Tensor) -> Tensor:
    """one (r, N) times other (N, D): adding N up in parts is twice as exact on a CPU, and takes no longer."""
    if len(one) > other.shape[1]:  # the wider of the two is to be read as it lies
        return _summed_in_parts(other.T, one.T).T
    parts = len(other) // PART
    whole = parts * PART
    if parts < 2:
        return one @ other
    lefts, rights = (each[:whole].reshape(parts, PART, each.shape[1]) for each in (one.T, other))
    made = torch.bmm(lefts.mT, rights).sum(0)
    return made if whole == len(other) else made.addmm_(one[:, whole:], other[whole:])
