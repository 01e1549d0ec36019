"""The gate of an MLP with the gains of DoRA layers before it, as Triton kernels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.triton_gate import _activate, added_up
from core.ops.triton_products import blocks_of

TILE = {"ROWS": 64, "BLOCK": 512, "STAGES": 3, "num_warps": 2}  # ROWS one after the other, summed column by column


@triton.jit  # type: ignore[untyped-decorator]
def _scaled_gate_forward(  # type: ignore[no-untyped-def]
    e, u, gain_e, gain_u, made, width, IS_SILU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    place = tl.program_id(0).to(tl.int64) * width + column
    gate = tl.load(e + place, mask=inside, other=0.0).to(tl.float32)
    gate *= tl.load(gain_e + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(u + place, mask=inside, other=0.0).to(tl.float32)
    up *= tl.load(gain_u + column, mask=inside, other=0.0).to(tl.float32)
    value, _ = _activate(gate, IS_SILU)
    tl.store(made + place, (value * up).to(made.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _scaled_gate_backward(  # type: ignore[no-untyped-def]
    gradient, e, u, gain_e, gain_u, d_e, d_u, sums, rows, width, IS_SILU: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    factor_e = tl.load(gain_e + column, mask=inside, other=0.0).to(tl.float32)
    factor_u = tl.load(gain_u + column, mask=inside, other=0.0).to(tl.float32)
    total_e, total_u = tl.zeros((BLOCK,), dtype=tl.float32), tl.zeros((BLOCK,), dtype=tl.float32)
    for step in tl.range(0, ROWS, num_stages=STAGES):
        row = part * ROWS + step
        place, known = row * width + column, inside & (row < rows)
        g = tl.load(gradient + place, mask=known, other=0.0).to(tl.float32)
        product_e = tl.load(e + place, mask=known, other=0.0).to(tl.float32)
        product_u = tl.load(u + place, mask=known, other=0.0).to(tl.float32)
        gate, up = product_e * factor_e, product_u * factor_u
        value, slope = _activate(gate, IS_SILU)
        of_e, of_u = g * up * slope, g * value
        tl.store(gradient + place, (value * up).to(gradient.dtype.element_ty), mask=known)
        tl.store(d_e + place, (of_e * factor_e).to(d_e.dtype.element_ty), mask=known)
        tl.store(d_u + place, (of_u * factor_u).to(d_u.dtype.element_ty), mask=known)
        total_e += of_e * product_e
        total_u += of_u * product_u
    tl.store(sums + part * 2 * width + column, total_e, mask=inside)
    tl.store(sums + part * 2 * width + width + column, total_u, mask=inside)


def scaled_gate_forward(e: Tensor, u: Tensor, gain_e: Tensor, gain_u: Tensor, is_silu: bool) -> Tensor:
    """`scaled_gate.scaled_gate_forward`."""
    e, u = e.contiguous(), u.contiguous()
    made = torch.empty_like(e)
    grid, tile = blocks_of(e)
    _scaled_gate_forward[grid](
        e, u, gain_e.contiguous(), gain_u.contiguous(), made, e.shape[1], IS_SILU=is_silu, **tile
    )
    return made


def scaled_gate_backward(
    gradient: Tensor, e: Tensor, u: Tensor, gain_e: Tensor, gain_u: Tensor, is_silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`scaled_gate.scaled_gate_backward`: sums of blocks of rows first, in a fixed order."""
    gradient, e, u = gradient.contiguous(), e.contiguous(), u.contiguous()
    rows, width = e.shape
    d_e, d_u = torch.empty_like(e), torch.empty_like(u)
    parts = triton.cdiv(rows, TILE["ROWS"])
    sums = torch.empty(parts, 2 * width, dtype=torch.float32, device=e.device)
    _scaled_gate_backward[(parts, triton.cdiv(width, TILE["BLOCK"]))](
        gradient, e, u, gain_e.contiguous(), gain_u.contiguous(), d_e, d_u, sums, rows, width, IS_SILU=is_silu, **TILE
    )
    sum_e, sum_u = torch.split(added_up(sums, torch.float32), width)
    return gradient, d_e, d_u, sum_e, sum_u
