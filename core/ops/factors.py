"""The factors of many groups in the format of their products: cast by a few kernels for all, not by a few for each.

A model of 30 layers has 120 groups, whose casts were a tenth of a small model's step. They are made for a few layers at
a time (`core.ops.fast_path.LED`), since the device waits while the host gets the first ones ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core.pieces import empty_in_one_piece, pieces_of

if TYPE_CHECKING:
    from core.ops.group import Group

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
    joined = empty_in_one_piece([(sum(group.ranks), group.width) for group in groups], a[0], dtype)
    parts = [part for group, whole in zip(groups, joined, strict=True) for part in whole.split_with_sizes(group.ranks)]
    _scaled_into(parts, a, scales)
    if any(each.dtype != dtype for each in b):
        cast = empty_in_one_piece([each.shape for each in b], b[0], dtype)
        _scaled_into(cast, b, None)
        b = cast
    of_b = iter(b)
    return [(whole, *(next(of_b) for _ in group.places)) for group, whole in zip(groups, joined, strict=True)]


def _scaled_into(targets: list[Tensor], sources: list[Tensor], scales: list[float] | None) -> None:
    """Write every source, times its scale, to its target, by one kernel where all of them lie behind each other."""
    into, of = pieces_of(targets), pieces_of(sources)
    is_one = len(into) == len(of) == 1 and into[0].numel() == of[0].numel()
    if scales is None:
        torch._foreach_copy_(into if is_one else targets, of if is_one else sources)
    elif is_one and len(set(scales)) == 1:
        torch.mul(of[0].view(into[0].shape), scales[0], out=into[0])
    else:
        torch._foreach_copy_(targets, torch._foreach_mul(sources, scales))


def make_ahead(groups: Sequence[Group], dtype: torch.dtype) -> None:
    """Give every group the factors of its next forward pass."""
    for group, made in zip(groups, make_factors(groups, dtype), strict=True):
        group.ahead = Ahead(made, versions_of(group))


def versions_of(group: Group) -> list[int]:
    """Numbers that change whenever a parameter of the group does."""
    return [parameter._version for parameter in group.parameters]
