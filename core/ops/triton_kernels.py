"""The elementwise and row-wise passes as Triton kernels: one read and one write each, sums in float32.

Imported on CUDA devices alone (`kernels.py`). Every function computes what the plain operations of its caller compute.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.triton_gate import gate_backward as gate_backward
from core.ops.triton_gate import gate_forward as gate_forward
from core.ops.triton_gate import lora_gate_backward as lora_gate_backward
from core.ops.triton_gate import lora_gate_forward as lora_gate_forward
from core.ops.triton_products import TILE
from core.ops.triton_products import add_product as add_product
from core.ops.triton_products import row_lengths as row_lengths
from core.ops.triton_products import scale_back as scale_back
from core.ops.triton_products import scale_columns as scale_columns
from core.ops.triton_products import scale_rows as scale_rows
from core.ops.triton_rope import rope as rope
from core.ops.triton_rope import turn as turn
from core.ops.triton_scaled_gate import scaled_gate_backward as scaled_gate_backward
from core.ops.triton_scaled_gate import scaled_gate_forward as scaled_gate_forward
from core.ops.triton_small_gradients import small_gradients as small_gradients

LOGITS, OF_MANY = 8192, 32768  # of a row that a program looks at together, and of one of
MANY = 100_000  # and more
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_forward(  # type: ignore[no-untyped-def]
    x, weight, y, rstd, rows, width, eps, offset, IS_AGAIN: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    place = row.to(tl.int64) * width + column
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if IS_AGAIN:
        inverse = tl.load(rstd + row, mask=row < rows, other=0.0)
    else:
        inverse = 1.0 / tl.sqrt(tl.sum(values * values, axis=1, keep_dims=True) / width + eps)
        tl.store(rstd + row, inverse, mask=row < rows)
    gain = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32) + offset
    tl.store(y + place, (values * inverse * gain).to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_backward(  # type: ignore[no-untyped-def]
    gradient, x, rstd, weight, residual, made, rows, width, offset, HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    place = row.to(tl.int64) * width + column
    gain = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32) + offset
    g = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32) * gain
    inverse = tl.load(rstd + row, mask=row < rows, other=0.0)
    unit = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * inverse
    d_x = inverse * (g - unit * (tl.sum(g * unit, axis=1, keep_dims=True) / width))
    if HAS_RESIDUAL:
        d_x += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(made + place, d_x.to(made.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy(logits, targets, losses, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    # In powers of 2: that is what the device has an instruction for.
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    own = tl.load(logits + row * width + tl.maximum(target, 0)).to(tl.float32) * LOG2_E
    most, total = -1e30, 0.0
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        values = tl.load(logits + row * width + column, mask=column < width, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(most, tl.max(values, axis=0) * LOG2_E)
        total = total * tl.exp2(most - larger) + tl.sum(tl.exp2(values * LOG2_E - larger), axis=0)
        most = larger
    whole = most + tl.log2(total)
    is_trained = target >= 0
    tl.store(losses + row, tl.where(is_trained, (whole - own) / LOG2_E, 0.0))
    share = tl.where(is_trained, 1.0, 0.0)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        values = tl.load(logits + row * width + column, mask=inside, other=-float("inf")).to(tl.float32)
        slope = share * tl.exp2(values * LOG2_E - whole) - tl.where(column == target, 1.0, 0.0)
        tl.store(logits + row * width + column, slope.to(logits.dtype.element_ty), mask=inside)


@triton.jit
def _mix(bits):  # type: ignore[no-untyped-def]
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit  # type: ignore[untyped-decorator]
def _dropped(  # type: ignore[no-untyped-def]
    x, seed, made, count, threshold, scale, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    start = _mix(tl.load(seed).to(tl.uint32))
    drawn = (_mix(place.to(tl.uint32) + start) & 0x7FFFFFFF).to(tl.int32)
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    kept = tl.where(drawn >= threshold, values * scale, 0.0)
    tl.store(made + place, kept.to(made.dtype.element_ty), mask=inside)


def norm_forward(x: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    """`rms_norm.norm_forward`."""
    rstd = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    return _norm(x, rstd, weight, eps, offset, is_again=False), rstd


def norm_again(x: Tensor, rstd: Tensor, weight: Tensor, offset: float) -> Tensor:
    """`rms_norm.norm_again`."""
    return _norm(x, rstd, weight, 0.0, offset, is_again=True)


def _norm(x: Tensor, rstd: Tensor, weight: Tensor, eps: float, offset: float, is_again: bool) -> Tensor:
    x = x.contiguous()
    made = torch.empty_like(x)
    grid, tile = _rows_of(x)
    _norm_forward[grid](x, weight, made, rstd, len(x), x.shape[1], eps, offset, IS_AGAIN=is_again, **tile)
    return made


def norm_backward(
    gradient: Tensor, x: Tensor, rstd: Tensor, weight: Tensor, offset: float, residual: Tensor | None
) -> Tensor:
    """`rms_norm.norm_backward`."""
    x, gradient = x.contiguous(), gradient.contiguous()
    added = gradient if residual is None else residual.contiguous()
    made = torch.empty_like(x)
    grid, tile = _rows_of(x)
    _norm_backward[grid](
        gradient, x, rstd, weight, added, made, len(x), x.shape[1], offset, HAS_RESIDUAL=residual is not None, **tile
    )
    return made


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] of every row of (N, V), 0 for a negative target, as (N) in float32.

    The logits, which must lie row behind row, become their own gradients.
    """
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    block = min(OF_MANY if logits.shape[1] >= MANY else LOGITS, triton.next_power_of_2(logits.shape[1]))
    _cross_entropy[(len(logits),)](logits, targets, losses, logits.shape[1], BLOCK=block, num_warps=16)
    return losses


def dropped(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """`dropout.dropped`."""
    x = x.contiguous()
    made = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), TILE),)
    _dropped[grid](x, seed, made, x.numel(), int(p * 2**31), 1 / (1 - p), BLOCK=TILE)
    return made


def _rows_of(x: Tensor) -> tuple[tuple[int], dict[str, Any]]:
    """The grid and the tile of a kernel that needs whole rows."""
    block = triton.next_power_of_2(x.shape[1])
    rows = max(1, TILE // block)
    warps = min(16, max(4, rows * block // 512))
    return (triton.cdiv(len(x), rows),), {"ROWS": rows, "BLOCK": block, "num_warps": warps}
