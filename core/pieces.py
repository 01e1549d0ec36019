"""Tensors behind each other in one piece of memory: what is done to every number of them is one kernel, not dozens.

An adapter has hundreds of small matrices. Their update, their norm, clearing their gradients and rounding them were a
twentieth of a small model's step on a GPU, and most of what the host had to do between two steps.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

ALIGNED = 64  # numbers: kernels read 16 bytes and more at once
T = TypeVar("T", bound=Tensor)


def empty_in_one_piece(shapes: Sequence[Sequence[int]], like: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Tensors of these shapes behind each other, every one of them aligned; apart, where memory has only gaps left."""
    numbers = [torch.Size(shape).numel() for shape in shapes]
    sizes = [-(-number // ALIGNED) * ALIGNED for number in numbers]
    whole = _empty(like, sum(sizes), dtype)
    if whole is None:
        gc.collect()  # a run before this one in the same process may still wait for that
        whole = _empty(like, sum(sizes), dtype)
    if whole is None:
        return [like.new_empty(shape, dtype=dtype) for shape in shapes]
    parts = torch.split(whole, sizes)
    return [part[:number].view(*shape) for part, number, shape in zip(parts, numbers, shapes, strict=True)]


def _empty(like: Tensor, size: int, dtype: torch.dtype) -> Tensor | None:
    try:
        return like.new_empty(size, dtype=dtype)
    except torch.OutOfMemoryError:
        return None


def runs_of(tensors: Sequence[T]) -> list[list[T]]:
    """The tensors, parted wherever one does not begin where the one before it ends, or is not contiguous."""
    runs: list[list[T]] = []
    known: tuple[int, torch.dtype] | None = None
    end = 0
    for tensor in tensors:
        own, start = (tensor.untyped_storage().data_ptr(), tensor.dtype), int(tensor.storage_offset())
        if own == known and start == end and tensor.is_contiguous():
            runs[-1].append(tensor)
        else:
            runs.append([tensor])
        known, end = own if tensor.is_contiguous() else None, start + tensor.numel()
    return runs


def pieces_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """All numbers of the tensors: those of a run as one 1-D tensor, any other tensor as it is."""
    return [_whole(run) for run in runs_of(tensors)]


def lay_in_one_piece(parameters: Sequence[nn.Parameter]) -> None:
    """Move contiguous parameters behind each other, if they are of one format and device; no number changes."""
    alike = len({(each.dtype, each.device) for each in parameters}) == 1
    if not (alike and all(each.is_contiguous() for each in parameters)) or len(runs_of(parameters)) == 1:
        return
    parts = empty_in_one_piece([each.shape for each in parameters], parameters[0].detach(), parameters[0].dtype)
    torch._foreach_copy_(parts, [each.detach() for each in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part


def fill_in_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give zeros to parameters without a gradient, which lie as these do; gradients that are there stay."""
    missing = [each for each in parameters if each.grad is None]
    for run in runs_of(missing):
        parts = empty_in_one_piece([each.shape for each in run], run[0].detach(), run[0].dtype)
        for parameter, part in zip(run, parts, strict=True):
            parameter.grad = part.zero_()


def _whole(run: Sequence[Tensor]) -> Tensor:
    first = run[0].detach()
    if len(run) == 1:
        return first
    return first.as_strided((sum(each.numel() for each in run),), (1,), first.storage_offset())
