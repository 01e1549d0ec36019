"""The factors of many groups in the format of their products: cast by a few kernels for all, not by a few for each.

A model of 30 layers has 120 groups, whose casts were a tenth of a small model's step. They are made for a few layers at
a time (`core.ops.fast_path.LED`), since the device waits while the host gets the first ones ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from core.ops.group import Group

ALIGNED = 64  # numbers: kernels read 16 bytes and more at once
Made = tuple[Tensor, ...]  # s A (sum of r, in) of all adapted layers of a group, then B (out, r) of each


@dataclass(frozen=True)
class Ahead:
    """The factors of a group that were made before its turn, and the state of its parameters then."""

    made: Made
    versions: list[int]


def make_factors(groups: Sequence[Group], dtype: torch.dtype) -> list[Made]:
    """The factors of groups that have adapters: s A is formed in A's own format, and rounded once."""
    a = [group.parameters[place].detach() for group in groups for place in group.places]
    b = [group.parameters[place + 1].detach() for group in groups for place in group.places]
    scales = [scale for group in groups for scale in group.scales]
    joined = _empty([(sum(group.ranks), group.width) for group in groups], a[0], dtype)
    parts = [part for group, whole in zip(groups, joined, strict=True) for part in whole.split_with_sizes(group.ranks)]
    torch._foreach_copy_(parts, torch._foreach_mul(a, scales))
    if any(each.dtype != dtype for each in b):
        cast = _empty([(each.shape[0], each.shape[1]) for each in b], b[0], dtype)
        torch._foreach_copy_(cast, b)
        b = cast
    of_b = iter(b)
    return [(whole, *(next(of_b) for _ in group.places)) for group, whole in zip(groups, joined, strict=True)]


def make_ahead(groups: Sequence[Group], dtype: torch.dtype) -> None:
    """Give every group the factors of its next forward pass."""
    for group, made in zip(groups, make_factors(groups, dtype), strict=True):
        group.ahead = Ahead(made, versions_of(group))


def versions_of(group: Group) -> list[int]:
    """Numbers that change whenever a parameter of the group does."""
    return [parameter._version for parameter in group.parameters]


def _empty(shapes: Sequence[tuple[int, int]], like: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Matrices behind each other in one piece of memory, every one of them aligned."""
    sizes = [-(-rows * columns // ALIGNED) * ALIGNED for rows, columns in shapes]
    starts = accumulate(sizes[:-1], initial=0)
    memory = like.new_empty(sum(sizes), dtype=dtype)
    return [memory.as_strided(shape, (shape[1], 1), start) for shape, start in zip(shapes, starts, strict=True)]
