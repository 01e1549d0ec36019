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
PROGRAMS = 256  # that the pass is divided into at least, where there is so much
ADDED = {"PARTS": 8, "SIZE": 512}


@triton.jit  # type: ignore[untyped-decorator]
def _block_ends(end0, end1, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the blocks of columns of the first, second and third layer end: each layer begins with a new one."""
    first = tl.cdiv(end0, BLOCK)
    second = first + tl.cdiv(end1 - end0, BLOCK)
    return first, second, second + tl.cdiv(width - end1, BLOCK)


@triton.jit
def _of_layer(layer, first, second, third):  # type: ignore[no-untyped-def]
    return tl.where(layer == 0, first, tl.where(layer == 1, second, third))


@triton.jit  # type: ignore[untyped-decorator]
def _small_gradients(  # type: ignore[no-untyped-def]
    gradient, small, b, small_sums, b_sums, rows, width, end0, end1, rank, small_stride, steps,
    RANK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    first_end, second_end, _ = _block_ends(end0, end1, width, BLOCK)
    layer = (block >= first_end).to(tl.int32) + (block >= second_end).to(tl.int32)
    left = _of_layer(layer, 0, end0, end1) + (block - _of_layer(layer, 0, first_end, second_end)) * BLOCK
    end = _of_layer(layer, end0, end1, width)
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
    small_sums, b_sums, d_small, d_b, rows, width, end0, end1, rank, layers, parts,
    BLOCK: tl.constexpr, PARTS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    of_small = tl.cdiv(rows * rank, SIZE)  # programs for the dS of a layer
    program = tl.program_id(0)
    if program < layers * of_small:
        layer = program // of_small
        first, second, third = _block_ends(end0, end1, width, BLOCK)
        start, end = _of_layer(layer, 0, first, second), _of_layer(layer, first, second, third)
        place = program % of_small * SIZE + tl.arange(0, SIZE)
        total = _sum_of_parts(small_sums, rows * rank, start, end, place, PARTS, SIZE)
        target = d_small + place // rank * (layers * rank) + layer * rank + place % rank
        tl.store(target, total.to(d_small.dtype.element_ty), mask=place < rows * rank)
    else:
        place = (program - layers * of_small) * SIZE + tl.arange(0, SIZE)
        total = _sum_of_parts(b_sums, width * rank, 0, parts, place, PARTS, SIZE)
        tl.store(d_b + place, total, mask=place < width * rank)


def small_gradients(whole: Tensor, b: Tensor, small: Tensor, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """`small_gradients.small_gradients`."""
    (rows, width), rank, layers = whole.shape, b.shape[1], len(widths)
    ends = widths[0], sum(widths[:2])
    tile = WIDE if max(widths) >= WIDE_FROM else NARROW
    blocks, down = sum(triton.cdiv(each, tile["BLOCK"]) for each in widths), triton.cdiv(rows, tile["ROWS"])
    steps = -(-down // max(1, min(down, PROGRAMS // blocks)))
    parts = triton.cdiv(down, steps)
    small_sums, b_sums, d_b = (
        torch.empty(*shape, rank, dtype=torch.float32, device=whole.device)
        for shape in ((blocks, rows), (parts, width), (width,))
    )
    d_small = torch.empty(rows, layers * rank, dtype=whole.dtype, device=whole.device)
    wide = TensorDescriptor.from_tensor(whole, [tile["ROWS"], tile["BLOCK"]])
    _small_gradients[blocks, parts](
        wide, small, b, small_sums, b_sums, rows, width, *ends, rank, small.stride(0), steps,
        RANK=max(16, triton.next_power_of_2(rank)), **tile,
    )  # fmt: skip
    programs = layers * triton.cdiv(rows * rank, ADDED["SIZE"]) + triton.cdiv(width * rank, ADDED["SIZE"])
    _add_up_both[(programs,)](
        small_sums, b_sums, d_small, d_b, rows, width, *ends, rank, layers, parts, BLOCK=tile["BLOCK"], **ADDED
    )
    return d_small, d_b
