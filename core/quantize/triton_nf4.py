"""Unpacking NF4 in one pass: half a byte a weight is read, a number written, and nothing lies in memory in between.

Imported on CUDA devices alone (`kernels.py`). The values are those of `nf4.py`, bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.quantize.nf4 import Absmax, pairs, steps
from core.quantize.size import ABSMAX_BLOCK, NF4_BLOCK

TILE = 1024  # bytes a program unpacks


@triton.jit  # type: ignore[untyped-decorator]
def _unpack(  # type: ignore[no-untyped-def]
    packed, codes, scales, mean, pairs, steps, made, count, HALF_BLOCK: tl.constexpr, ABSMAX: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    byte = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = 2 * byte < count
    pair = tl.load(packed + byte, mask=inside, other=0).to(tl.int32)
    block = byte // HALF_BLOCK
    code = tl.load(codes + block, mask=inside, other=0).to(tl.int32)
    absmax = tl.load(steps + code) * tl.load(scales + block // ABSMAX, mask=inside, other=0.0) + tl.load(mean)
    both = tl.interleave(tl.load(pairs + 2 * pair) * absmax, tl.load(pairs + 2 * pair + 1) * absmax)
    place = tl.program_id(0).to(tl.int64) * 2 * TILE + tl.arange(0, 2 * TILE)
    tl.store(made + place, both.to(made.dtype.element_ty), mask=place < count)


def dequantize(packed: Tensor, absmax: Absmax, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The values (out, in) of packed codes and their twice quantised absmax."""
    made = torch.empty(shape, dtype=dtype, device=packed.device)
    _unpack[(triton.cdiv(packed.numel(), TILE),)](
        packed, absmax.codes, absmax.scales, absmax.mean, pairs(packed.device), steps(packed.device),
        made, made.numel(),
        HALF_BLOCK=NF4_BLOCK // 2, ABSMAX=ABSMAX_BLOCK, TILE=TILE,
        enable_fp_fusion=False,  # a product and a sum in one rounding would not be what `nf4.py` gives
    )  # fmt: skip
    return made
