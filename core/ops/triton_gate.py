"""The gate of an MLP as Triton kernels, alone and with the small products of the LoRA layers around it.

Sums over columns or rows are formed in a few parts, always the same ones, which one more pass adds up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice
from triton.tools.tensor_descriptor import TensorDescriptor

from core.ops.kernels import ALIGNED, is_hopper
from core.ops.triton_products import _load_small, blocks_of

if TYPE_CHECKING:
    from core.ops.lora_gate import Around

# Tiles come and leave beside the computing, which so holds one of each alone; FAST are the fastest of some on an H200.
FAST = {"ROWS": 16, "BLOCK": 128, "STAGES": 2, "num_warps": 1}, {"ROWS": 16, "BLOCK": 128, "STAGES": 3, "num_warps": 2}
SMALL = {"ROWS": 16, "BLOCK": 64, "STAGES": 2, "num_warps": 1}, {"ROWS": 16, "BLOCK": 64, "STAGES": 2, "num_warps": 4}
ADDED = {"PARTS": 4, "BLOCK": 512}
FORWARD_PROGRAMS, BACKWARD_PROGRAMS = 1024, 512  # that a pass is divided into at least, where there is so much


@triton.jit
def _sigmoid(x):  # type: ignore[no-untyped-def]
    # The instructions of exp and of the division without what surrounds them for the smallest numbers, which is half
    # of all that a gate computes: where that would matter, the sigmoid is 0 in every format.
    return libdevice.fast_dividef(1.0, 1.0 + tl.exp2(-1.4426950408889634 * x))


@triton.jit  # type: ignore[untyped-decorator]
def _activate(e, IS_SILU: tl.constexpr):  # type: ignore[no-untyped-def]
    """(act(e), act'(e)) for silu, or gelu with tanh."""
    if IS_SILU:
        sigmoid = _sigmoid(e)
        value = e * sigmoid
        slope = sigmoid * (1.0 + e * (1.0 - sigmoid))
    else:
        inner = 0.7978845608028654 * (e + 0.044715 * e * e * e)
        tanh = 2.0 * _sigmoid(2.0 * inner) - 1.0
        value = 0.5 * e * (1.0 + tanh)
        slope = 0.5 * (1.0 + tanh) + 0.5 * e * (1.0 - tanh * tanh) * 0.7978845608028654 * (1.0 + 0.134145 * e * e)
    return value, slope


@triton.jit  # type: ignore[untyped-decorator]
def _gate_forward(  # type: ignore[no-untyped-def]
    e, u, made, width, e_stride, u_stride, IS_SILU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(e + row * e_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(u + row * u_stride + column, mask=inside, other=0.0).to(tl.float32)
    value, _ = _activate(gate, IS_SILU)
    tl.store(made + row * width + column, (value * up).to(made.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gate_backward(  # type: ignore[no-untyped-def]
    gradient, e, u, d_e, d_u, width, e_stride, u_stride, IS_SILU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    place = row * width + column
    g = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(e + row * e_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(u + row * u_stride + column, mask=inside, other=0.0).to(tl.float32)
    value, slope = _activate(gate, IS_SILU)
    tl.store(d_e + place, (g * up * slope).to(d_e.dtype.element_ty), mask=inside)
    tl.store(d_u + place, (g * value).to(d_u.dtype.element_ty), mask=inside)
    tl.store(gradient + place, (value * up).to(gradient.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _lora_gate_forward(  # type: ignore[no-untyped-def]
    e, u, gated, small_e, small_u, b_e, b_u, a, sums, rows, width, rank_e, rank_u, rank_a,
    stride_e, stride_u, steps, IS_SILU: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    top = tl.program_id(0) * ROWS
    row = (top + tl.arange(0, ROWS)).to(tl.int64)
    left_e = _load_small(small_e, row, rows, rank_e, stride_e, RANK)
    left_u = _load_small(small_u, row, rows, rank_u, stride_u, RANK)
    r = tl.arange(0, RANK)
    total = tl.zeros((ROWS, RANK), dtype=tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        first = (tl.program_id(1) * steps + step) * BLOCK
        column = first + tl.arange(0, BLOCK)
        gate, up = e.load([top, first]).to(tl.float32), u.load([top, first]).to(tl.float32)
        right_e = tl.trans(_load_small(b_e, column, width, rank_e, rank_e, RANK))
        right_u = tl.trans(_load_small(b_u, column, width, rank_u, rank_u, RANK))
        gate = tl.dot(left_e, right_e, gate, input_precision="ieee")
        up = tl.dot(left_u, right_u, up, input_precision="ieee")
        value, _ = _activate(gate, IS_SILU)
        made = (value * up).to(gated.dtype)
        gated.store([top, first], made)
        known = (column < width)[:, None] & (r < rank_a)[None, :]
        behind = tl.load(a + r[None, :] * width + column[:, None], mask=known, other=0.0)
        total = tl.dot(made, behind, total, input_precision="ieee")
    target = (tl.program_id(1) * rows + row)[:, None] * rank_a + r[None, :]
    tl.store(sums + target, total, mask=(row < rows)[:, None] & (r < rank_a)[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _lora_gate_backward(  # type: ignore[no-untyped-def]
    gradient, e, u, d_u, small_e, small_u, d_small, b_e, b_u, a, sums, rows, width,
    rank_e, rank_u, rank_a, stride_e, stride_u, stride_a, steps, IS_SILU: tl.constexpr, RANK: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # Tiles stand on their side, (BLOCK, ROWS): so what one product gives is what the next one takes, in the registers.
    first = tl.program_id(0) * BLOCK
    column = first + tl.arange(0, BLOCK)
    r = tl.arange(0, RANK)
    left_e = _load_small(b_e, column, width, rank_e, rank_e, RANK)
    left_u = _load_small(b_u, column, width, rank_u, rank_u, RANK)
    of_a = (column < width)[:, None] & (r < rank_a)[None, :]
    left_a = tl.load(a + r[None, :] * width + column[:, None], mask=of_a, other=0.0)
    total_a = tl.zeros((BLOCK, RANK), dtype=tl.float32)
    total_e = tl.zeros((BLOCK, RANK), dtype=tl.float32)
    total_u = tl.zeros((BLOCK, RANK), dtype=tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        top = (tl.program_id(1) * steps + step) * ROWS
        row = top + tl.arange(0, ROWS)
        g = tl.trans(gradient.load([top, first])).to(tl.float32)
        gate, up = tl.trans(e.load([top, first])).to(tl.float32), tl.trans(u.load([top, first])).to(tl.float32)
        right_a = _load_small(d_small, row, rows, rank_a, stride_a, RANK)
        right_e = _load_small(small_e, row, rows, rank_e, stride_e, RANK)
        right_u = _load_small(small_u, row, rows, rank_u, stride_u, RANK)
        g = tl.dot(left_a, tl.trans(right_a), g, input_precision="ieee")
        gate = tl.dot(left_e, tl.trans(right_e), gate, input_precision="ieee")
        up = tl.dot(left_u, tl.trans(right_u), up, input_precision="ieee")
        value, slope = _activate(gate, IS_SILU)
        made = (value * up).to(d_u.dtype)
        of_e = (g * up * slope).to(d_u.dtype)
        of_u = (g * value).to(d_u.dtype)
        gradient.store([top, first], tl.trans(of_e))
        d_u.store([top, first], tl.trans(of_u))
        total_a = tl.dot(made, right_a, total_a, input_precision="ieee")
        total_e = tl.dot(of_e, right_e, total_e, input_precision="ieee")
        total_u = tl.dot(of_u, right_u, total_u, input_precision="ieee")
    part = sums + tl.program_id(1).to(tl.int64) * width * (rank_a + rank_e + rank_u)  # for A, then for both B
    tl.store(part + r[None, :] * width + column[:, None], total_a, mask=of_a)
    part += rank_a * width
    known, column, r = (column < width)[:, None], column[:, None], r[None, :]
    tl.store(part + column * rank_e + r, total_e, mask=known & (r < rank_e))
    tl.store(part + rank_e * width + column * rank_u + r, total_u, mask=known & (r < rank_u))


@triton.jit  # type: ignore[untyped-decorator]
def _add_up(sums, made, size, parts, scale, scaled, PARTS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        known = (part < parts)[:, None] & (column < size)[None, :]
        values = tl.load(sums + part.to(tl.int64)[:, None] * size + column[None, :], mask=known, other=0.0)
        total += tl.sum(values, axis=0)
    total = tl.where(column < scaled, scale * total, total)
    tl.store(made + column, total.to(made.dtype.element_ty), mask=column < size)


def gate_forward(e: Tensor, u: Tensor, is_silu: bool) -> Tensor:
    """`gating.gate_forward`."""
    made = torch.empty(e.shape, dtype=e.dtype, device=e.device)
    grid, tile = blocks_of(e)
    _gate_forward[grid](e, u, made, e.shape[1], e.stride(0), u.stride(0), IS_SILU=is_silu, **tile)
    return made


def gate_backward(gradient: Tensor, e: Tensor, u: Tensor, is_silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """`gating.gate_backward`: act(e) u is written over the gradient."""
    gradient = gradient.contiguous()
    d_e, d_u = torch.empty_like(gradient), torch.empty_like(gradient)
    grid, tile = blocks_of(e)
    _gate_backward[grid](gradient, e, u, d_e, d_u, e.shape[1], e.stride(0), u.stride(0), IS_SILU=is_silu, **tile)
    return gradient, d_e, d_u


def lora_gate_forward(e: Tensor, u: Tensor, around: Around, is_silu: bool) -> tuple[Tensor, Tensor]:
    """`lora_gate.lora_gate_forward`."""
    rows, width = e.shape
    ranks = _ranks(around)
    tile, _ = _tiles(ranks, e.device)
    down, across = triton.cdiv(rows, tile["ROWS"]), triton.cdiv(width, tile["BLOCK"])
    steps = _steps(across, down, FORWARD_PROGRAMS)
    parts = triton.cdiv(across, steps)
    gated = torch.empty(e.shape, dtype=e.dtype, device=e.device)
    sums = torch.empty(parts, rows, ranks[2], dtype=torch.float32, device=e.device)
    small_e, small_u, *others = _factors(around)
    wide = [_tiled(each, tile) for each in (_in_rows(e), _in_rows(u), gated)]
    _lora_gate_forward[down, parts](
        *wide, small_e, small_u, *others, sums, rows, width, *ranks,
        small_e.stride(0), small_u.stride(0), steps, IS_SILU=is_silu, RANK=_filled(ranks), **tile,
    )  # fmt: skip
    return gated, added_up(sums, e.dtype)


def lora_gate_backward(
    d_e: Tensor, d_u: Tensor, e: Tensor, u: Tensor, around: Around, d_small: Tensor, is_silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`lora_gate.lora_gate_backward`."""
    rows, width = e.shape
    ranks = _ranks(around)
    _, tile = _tiles(ranks, e.device)
    down, across = triton.cdiv(rows, tile["ROWS"]), triton.cdiv(width, tile["BLOCK"])
    steps = _steps(down, across, BACKWARD_PROGRAMS)
    parts = triton.cdiv(down, steps)
    sums = torch.empty(parts, sum(ranks) * width, dtype=torch.float32, device=e.device)
    small_e, small_u, *others = _factors(around)
    d_small = _side_by_side(d_small)
    strides = [small.stride(0) for small in (small_e, small_u, d_small)]
    wide = [_tiled(each, tile) for each in (d_e, _in_rows(e), _in_rows(u), d_u)]
    _lora_gate_backward[across, parts](
        *wide, small_e, small_u, d_small, *others, sums,
        rows, width, *ranks, *strides, steps, IS_SILU=is_silu, RANK=_filled(ranks), **tile,
    )  # fmt: skip
    sizes = [ranks[2] * width, ranks[0] * width, ranks[1] * width]
    d_a, d_b_e, d_b_u = torch.split(added_up(sums, torch.float32, around.scale, sizes[0]), sizes)
    return d_a.view(ranks[2], width), d_b_e.view(width, ranks[0]), d_b_u.view(width, ranks[1])


def _tiles(ranks: list[int], device: torch.device) -> tuple[dict[str, int], dict[str, int]]:
    """The tiles forward and backward; the larger ones need a GPU of the Hopper generation or newer, and few ranks."""
    return FAST if _filled(ranks) == 16 and is_hopper(device) else SMALL


def _tiled(matrix: Tensor, tile: dict[str, int]) -> Any:
    """A matrix whose tiles the device fetches and stores by itself."""
    return TensorDescriptor.from_tensor(matrix, [tile["ROWS"], tile["BLOCK"]])


def _in_rows(matrix: Tensor) -> Tensor:
    """A matrix whose rows may lie apart, as those of halves do, where tiles can begin with each."""
    is_fit = matrix.stride(1) == 1 and not any(each % ALIGNED for each in (matrix.stride(0), matrix.storage_offset()))
    return matrix if is_fit else matrix.contiguous()


def added_up(sums: Tensor, dtype: torch.dtype, scale: float = 1.0, scaled: int = 0) -> Tensor:
    """The sum of all parts (parts, ...), the first `scaled` numbers times `scale`."""
    made = torch.empty(sums.shape[1:], dtype=dtype, device=sums.device)
    grid = (triton.cdiv(made.numel(), ADDED["BLOCK"]),)
    _add_up[grid](sums, made, made.numel(), len(sums), scale, scaled, **ADDED)
    return made


def _factors(around: Around) -> list[Tensor]:
    """In the order of the kernels' arguments."""
    smalls = [_side_by_side(around.small_e), _side_by_side(around.small_u)]
    return [*smalls, around.b_e.contiguous(), around.b_u.contiguous(), around.a.contiguous()]


def _side_by_side(small: Tensor) -> Tensor:
    """An S whose rows may lie apart, as parts of a wider one do, but not their numbers."""
    return small if small.stride(1) == 1 else small.contiguous()


def _ranks(around: Around) -> list[int]:
    return [around.b_e.shape[1], around.b_u.shape[1], around.a.shape[0]]


def _filled(ranks: list[int]) -> int:
    filled: int = triton.next_power_of_2(max(ranks))
    return max(16, filled)


def _steps(along: int, others: int, programs: int) -> int:
    """Tiles of one program, of so many along its way, while `others` programs go beside it."""
    return -(-along // max(1, min(along, programs // others)))
