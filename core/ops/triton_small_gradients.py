"""dS = dy B and dB = dy^T S of up to three layers side by side, as Triton kernels that read dy once.

The sums over columns, dS, and over rows, dB, are formed in parts, always the same ones, which one more pass adds up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from core.ops.triton_products import _load_small

WIDE = {"ROWS": 64, "BLOCK": 256, "STAGES": 2, "num_warps": 8}  # tiles of dy, the fastest of some on an H200
NARROW = {"ROWS": 128, "BLOCK": 64, "STAGES": 2, "num_warps": 8}  # where no layer has
WIDE_FROM = 1024  # outputs
ALONE = {"ROWS": 64, "BLOCK": 256, "STAGES": 2, "num_warps": 4}  # for dS without dB
PROGRAMS = 256  # that the pass is divided into at least, where there is so much
ADDED = {"PARTS": 8, "SIZE": 512}


@triton.jit
def _block_ends(end0, end1, width, BLOCK):  # type: ignore[no-untyped-def]
    """Where the blocks of columns of the first, second and third layer end: each layer begins with a new one."""
    first = tl.cdiv(end0, BLOCK)
    second = first + tl.cdiv(end1 - end0, BLOCK)
    return first, second, second + tl.cdiv(width - end1, BLOCK)


@triton.jit
def _of_layer(layer, first, second, third):  # type: ignore[no-untyped-def]
    return tl.where(layer == 0, first, tl.where(layer == 1, second, third))


@triton.jit
def _columns_of(block, end0, end1, width, BLOCK):  # type: ignore[no-untyped-def]
    """(the layer of a block of columns, where the block begins, where the layer ends)."""
    first_end, second_end, _ = _block_ends(end0, end1, width, BLOCK)
    layer = (block >= first_end).to(tl.int32) + (block >= second_end).to(tl.int32)
    left = _of_layer(layer, 0, end0, end1) + (block - _of_layer(layer, 0, first_end, second_end)) * BLOCK
    return layer, left, _of_layer(layer, end0, end1, width)


@triton.jit  # type: ignore[untyped-decorator]
def _small_gradients(  # type: ignore[no-untyped-def]
    gradient, small, b, small_sums, b_sums, rows, width, end0, end1, rank, small_stride, steps,
    RANK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    layer, left, end = _columns_of(block, end0, end1, width, BLOCK)
    column, r = left + tl.arange(0, BLOCK), tl.arange(0, RANK)[None, :]
    right = _load_small(b, column, end, rank, rank, RANK)  # zeros beyond the layer, so that what follows it is nothing
    total = tl.zeros((BLOCK, RANK), dtype=tl.float32)
    part = small_sums + block.to(tl.int64) * rows * rank
    for step in tl.range(0, steps, num_stages=STAGES):
        top = (tl.program_id(1) * steps + step) * ROWS
        row = top + tl.arange(0, ROWS)
        tile = gradient.load([top, left])
        made = tl.dot(tile, right, input_precision="ieee")
        tl.store(part + row[:, None] * rank + r, made, mask=(row < rows)[:, None] & (r < rank))
        own = _load_small(small + layer * rank, row, rows, rank, small_stride, RANK)
        total = tl.dot(tl.trans(tile), own, total, input_precision="ieee")
    part = b_sums + tl.program_id(1).to(tl.int64) * width * rank
    tl.store(part + column[:, None] * rank + r, total, mask=(column < end)[:, None] & (r < rank))


@triton.jit  # type: ignore[untyped-decorator]
def _gradient_of_small(  # type: ignore[no-untyped-def]
    gradient, b, small_sums, rows, width, end0, end1, rank, columns,
    RANK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    _, left, end = _columns_of(part, end0, end1, width, columns)
    top = tl.program_id(0) * ROWS
    row, r = top + tl.arange(0, ROWS), tl.arange(0, RANK)[None, :]
    total = tl.zeros((ROWS, RANK), dtype=tl.float32)
    for first in tl.range(left, tl.minimum(left + columns, end), BLOCK, num_stages=STAGES):
        right = _load_small(b, first + tl.arange(0, BLOCK), end, rank, rank, RANK)
        total = tl.dot(gradient.load([top, first]), right, total, input_precision="ieee")
    target = small_sums + part.to(tl.int64) * rows * rank + row[:, None] * rank + r
    tl.store(target, total, mask=(row < rows)[:, None] & (r < rank))


@triton.jit  # type: ignore[untyped-decorator]
def _sum_of_parts(sums, size, start, end, place, PARTS: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    total = tl.zeros((SIZE,), dtype=tl.float32)
    for first in range(start, end, PARTS):
        part = first + tl.arange(0, PARTS)
        known = (part < end)[:, None] & (place < size)[None, :]
        values = tl.load(sums + part.to(tl.int64)[:, None] * size + place[None, :], mask=known, other=0.0)
        total += tl.sum(values, axis=0)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _add_up_both(  # type: ignore[no-untyped-def]
    small_sums, b_sums, d_small, d_b, rows, width, end0, end1, rank, layers, parts, columns,
    PARTS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    of_small = tl.cdiv(rows * rank, SIZE)  # programs for the dS of a layer
    program = tl.program_id(0)
    if program < layers * of_small:
        layer = program // of_small
        first, second, third = _block_ends(end0, end1, width, columns)
        start, end = _of_layer(layer, 0, first, second), _of_layer(layer, first, second, third)
        place = program % of_small * SIZE + tl.arange(0, SIZE)
        total = _sum_of_parts(small_sums, rows * rank, start, end, place, PARTS, SIZE)
        target = d_small + place // rank * (layers * rank) + layer * rank + place % rank
        tl.store(target, total.to(d_small.dtype.element_ty), mask=place < rows * rank)
    else:
        place = (program - layers * of_small) * SIZE + tl.arange(0, SIZE)
        total = _sum_of_parts(b_sums, width * rank, 0, parts, place, PARTS, SIZE)
        tl.store(d_b + place, total, mask=place < width * rank)


def small_gradients(
    whole: Tensor, b: Tensor, small: Tensor, widths: Sequence[int], wants_b: bool
) -> tuple[Tensor, Tensor | None]:
    """`small_gradients.small_gradients`."""
    (rows, width), rank, layers = whole.shape, b.shape[1], len(widths)
    ends = widths[0], sum(widths[:2])
    tile = ALONE if not wants_b else WIDE if max(widths) >= WIDE_FROM else NARROW
    down, columns, parts = triton.cdiv(rows, tile["ROWS"]), tile["BLOCK"], 0
    given = {"RANK": max(16, triton.next_power_of_2(rank)), **tile}
    wide = TensorDescriptor.from_tensor(whole, [tile["ROWS"], columns])
    if wants_b:
        blocks = sum(triton.cdiv(each, columns) for each in widths)
        steps = -(-down // max(1, min(down, PROGRAMS // blocks)))
        parts = triton.cdiv(down, steps)
        small_sums, b_sums = (_empty(each, rank, whole.device) for each in (blocks * rows, parts * width))
        _small_gradients[blocks, parts](
            wide, small, b, small_sums, b_sums, rows, width, *ends, rank, small.stride(0), steps, **given
        )
    else:
        columns *= triton.cdiv(width, columns * max(1, PROGRAMS // down))
        blocks = sum(triton.cdiv(each, columns) for each in widths)
        small_sums = b_sums = _empty(blocks * rows, rank, whole.device)
        _gradient_of_small[down, blocks](wide, b, small_sums, rows, width, *ends, rank, columns, **given)
    d_b = _empty(width if wants_b else 0, rank, whole.device)
    d_small = torch.empty(rows, layers * rank, dtype=whole.dtype, device=whole.device)
    programs = layers * triton.cdiv(rows * rank, ADDED["SIZE"]) + triton.cdiv(d_b.numel(), ADDED["SIZE"])
    _add_up_both[(programs,)](
        small_sums, b_sums, d_small, d_b, rows, width, *ends, rank, layers, parts, columns, **ADDED
    )
    return d_small, d_b if wants_b else None


def _empty(rows: int, rank: int, device: torch.device) -> Tensor:
    return torch.empty(rows, rank, dtype=torch.float32, device=device)
