"""What surrounds the products of linear layers as Triton kernels: a small product more, and all that DoRA adds."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.kernels import WIDEST

TILE = 2048  # numbers a program works on at a time, where a row has fewer
SUMMED_ROWS = 32  # that one program sums column by column


@triton.jit  # type: ignore[untyped-decorator]
def _load_small(pointer, row, rows, rank, stride, RANK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of an S, or columns of a B: (len(row), RANK), zeros beyond the rank."""
    r = tl.arange(0, RANK)[None, :]
    return tl.load(pointer + row[:, None] * stride + r, mask=(row < rows)[:, None] & (r < rank), other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _scale_columns(  # type: ignore[no-untyped-def]
    product, gain, start, made, width, start_stride, HAS_START: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    place = row * width + column
    values = tl.load(product + place, mask=inside, other=0.0).to(tl.float32)
    values *= tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_START:
        values += tl.load(start + row * start_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(made + place, values.to(made.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _scale_rows(  # type: ignore[no-untyped-def]
    x, factor, made, rows, width, scale, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    values = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    values *= scale * tl.load(factor + row, mask=row < rows, other=0.0)
    tl.store(made + row * width + column, values.to(made.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _add_product(  # type: ignore[no-untyped-def]
    start, small, b, made, rows, width, rank, start_stride, small_stride, b_stride,
    RANK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (row < rows) & (column < width)
    r = tl.arange(0, RANK)
    left = tl.load(small + row * small_stride + r[None, :], mask=(row < rows) & (r < rank)[None, :], other=0.0)
    right = tl.load(b + column * b_stride + r[:, None], mask=(column < width) & (r < rank)[:, None], other=0.0)
    values = tl.load(start + row * start_stride + column, mask=inside, other=0.0).to(tl.float32)
    values = tl.dot(left, right, values, input_precision="ieee")
    tl.store(made + row * width + column, values.to(made.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _row_lengths(  # type: ignore[no-untyped-def]
    squares, cross, b, gram, made, rows, rank, scale, RANK: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    r = tl.arange(0, RANK)
    place, known = row[:, None] * rank + r[None, :], (row < rows)[:, None] & (r < rank)[None, :]
    own = tl.load(b + place, mask=known, other=0.0).to(tl.float32)
    both = (r < rank)[:, None] & (r < rank)[None, :]
    inner = tl.load(gram + r[:, None] * rank + r[None, :], mask=both, other=0.0).to(tl.float32)
    turned = 2 * scale * tl.load(cross + place, mask=known, other=0.0).to(tl.float32)
    turned += scale * scale * tl.dot(own, inner, input_precision="ieee")
    values = tl.load(squares + row, mask=row < rows, other=0.0).to(tl.float32) + tl.sum(turned * own, axis=1)
    tl.store(made + row, tl.sqrt(tl.maximum(values, 0.0)).to(made.dtype.element_ty), mask=row < rows)


@triton.jit  # type: ignore[untyped-decorator]
def _scale_back(  # type: ignore[no-untyped-def]
    gradient, product, gain, made, sums, rows, width, gradient_stride, made_stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    factor = tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for step in range(ROWS):
        row = part * ROWS + step
        known = inside & (row < rows)
        g = tl.load(gradient + row * gradient_stride + column, mask=known, other=0.0).to(tl.float32)
        total += g * tl.load(product + row * width + column, mask=known, other=0.0).to(tl.float32)
        tl.store(made + row * made_stride + column, (g * factor).to(made.dtype.element_ty), mask=known)
    tl.store(sums + part * width + column, total, mask=inside)


def scale_columns(product: Tensor, gain: Tensor, start: Tensor | None) -> Tensor:
    """`scaling.scaled`."""
    product = product.contiguous()
    added = product if start is None else start.contiguous()
    made = torch.empty_like(product)
    grid, tile = blocks_of(product)
    stride = product.shape[1] if added.dim() == 2 else 0
    _scale_columns[grid](
        product, gain.contiguous(), added, made, product.shape[1], stride, HAS_START=start is not None, **tile
    )
    return made


def scale_rows(small: Tensor, factor: Tensor, scale: float) -> Tensor:
    """`scaling.scale_rows`."""
    small = small.contiguous()
    made = torch.empty_like(small)
    rows, width = small.shape
    block = triton.next_power_of_2(width)
    tile = {"BLOCK": block, "ROWS": max(1, TILE // block)}
    _scale_rows[(triton.cdiv(rows, tile["ROWS"]),)](small, factor.contiguous(), made, rows, width, scale, **tile)
    return made


def row_lengths(squares: Tensor, cross: Tensor, b: Tensor, gram: Tensor, scale: float) -> Tensor:
    """`core.adapters.dora.row_lengths`, in one pass."""
    rows, rank = b.shape
    made = torch.empty(rows, dtype=b.dtype, device=b.device)
    tile = {"RANK": max(16, triton.next_power_of_2(rank)), "ROWS": 32}
    _row_lengths[(triton.cdiv(rows, tile["ROWS"]),)](
        squares.contiguous(), cross.contiguous(), b.contiguous(), gram.contiguous(), made, rows, rank, scale, **tile
    )
    return made


def add_product(start: Tensor, small: Tensor, b: Tensor) -> Tensor:
    """`group.add_product`: start is read once, where torch copies it first."""
    if small.shape[1] > WIDEST or start.stride(1) != 1 or small.stride(1) != 1 or b.stride(1) != 1:
        return torch.addmm(start, small, b.T)
    made = torch.empty(start.shape, dtype=start.dtype, device=start.device)
    tile = {"RANK": max(16, triton.next_power_of_2(small.shape[1])), "ROWS": 64, "BLOCK": 128}
    _add_product[triton.cdiv(len(start), tile["ROWS"]), triton.cdiv(start.shape[1], tile["BLOCK"])](
        start, small, b, made, *start.shape, small.shape[1], start.stride(0), small.stride(0), b.stride(0), **tile
    )
    return made


def scale_back(gradient: Tensor, product: Tensor, gain: Tensor, made: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`scaling.scale_back`: sums of blocks of rows first, in a fixed order."""
    gradient = gradient if gradient.stride(1) == 1 else gradient.contiguous()
    rows, width = gradient.shape
    made = torch.empty(rows, width, dtype=gradient.dtype, device=gradient.device) if made is None else made
    parts = triton.cdiv(rows, SUMMED_ROWS)
    sums = torch.empty(parts, width, dtype=torch.float32, device=gradient.device)
    block = min(TILE // 2, triton.next_power_of_2(width))
    _scale_back[(parts, triton.cdiv(width, block))](
        gradient, product.contiguous(), gain.contiguous(), made, sums, rows, width,
        gradient.stride(0), made.stride(0), ROWS=SUMMED_ROWS, BLOCK=block,
    )  # fmt: skip
    return made, sums.sum(0)


def blocks_of(x: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid and the tile of an elementwise kernel."""
    block = min(TILE // 2, triton.next_power_of_2(x.shape[1]))
    return (len(x), triton.cdiv(x.shape[1], block)), {"BLOCK": block}
