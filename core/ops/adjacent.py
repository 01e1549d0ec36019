"""Matrices that lie next to each other in memory, and so are one larger matrix without a copy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def side_by_side(parts: Sequence[Tensor]) -> Tensor | None:
    """The matrix that parts (N, each) are the columns of, one behind the other; None where they are not."""
    first, width = parts[0], 0
    for part in parts:
        is_next = part.storage_offset() == first.storage_offset() + width and part.stride() == first.stride()
        if not (is_next and part.stride(1) == 1 and _share_memory(part, first)):
            return None
        width += part.shape[1]
    return first.as_strided((len(first), width), first.stride()) if width <= first.stride(0) else None


def below_each_other(parts: Sequence[Tensor]) -> Tensor | None:
    """The matrix that parts (each, D) are the rows of, one behind the other; None where they are not."""
    first, rows = parts[0], 0
    for part in parts:
        is_next = part.storage_offset() == first.storage_offset() + rows * first.shape[1]
        if not (is_next and part.is_contiguous() and _share_memory(part, first)) or part.shape[1] != first.shape[1]:
            return None
        rows += len(part)
    return first.as_strided((rows, first.shape[1]), first.stride())


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
