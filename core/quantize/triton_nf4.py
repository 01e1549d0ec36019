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

BLOCKS = 32  # that a program unpacks


@triton.jit  # type: ignore[untyped-decorator]
def _unpack(  # type: ignore[no-untyped-def]
    packed, codes, scales, mean, pairs, steps, made, count, HALF_BLOCK: tl.constexpr, ABSMAX: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    known = 2 * HALF_BLOCK * block < count
    code = tl.load(codes + block, mask=known, other=0).to(tl.int32)
    absmax = tl.load(steps + code) * tl.load(scales + block // ABSMAX, mask=known, other=0.0) + tl.load(mean)
    byte = block[:, None] * HALF_BLOCK + tl.arange(0, HALF_BLOCK)[None, :]
    both = tl.load(pairs + tl.load(packed + byte, mask=2 * byte < count, other=0).to(tl.int32))  # one look-up for two
    one = both.to(tl.int32).to(tl.float32, bitcast=True) * absmax[:, None]
    other = (both >> 32).to(tl.int32).to(tl.float32, bitcast=True) * absmax[:, None]
    place = 2 * HALF_BLOCK * block[:, None] + tl.arange(0, 2 * HALF_BLOCK)[None, :]
    tl.store(made + place, tl.interleave(one, other).to(made.dtype.element_ty), mask=place < count)


def dequantize(packed: Tensor, absmax: Absmax, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The values (out, in) of packed codes and their twice quantised absmax."""
    made = torch.empty(shape, dtype=dtype, device=packed.device)
    _unpack[(triton.cdiv(made.numel(), NF4_BLOCK * BLOCKS),)](
        packed, absmax.codes, absmax.scales, absmax.mean, pairs(packed.device).view(torch.int64), steps(packed.device),
        made, made.numel(),
        HALF_BLOCK=NF4_BLOCK // 2, ABSMAX=ABSMAX_BLOCK, BLOCKS=BLOCKS,
        enable_fp_fusion=False,  # a product and a sum in one rounding would not be what `nf4.py` gives
    )  # fmt: skip
    return made
