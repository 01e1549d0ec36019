"""In which number format the products of a layer are computed."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The format to multiply `x` in: its own, or float32 on a CPU that would only emulate 16-bit products.

    There a bfloat16 product runs at a tenth of float32's speed, its backward pass at a fiftieth; widening the operands
    first costs less than a hundredth of that, and rounds less often.
    """
    if x.device.type == "cpu" and x.dtype in _HALF and not has_half_products():
        return torch.float32
    return x.dtype


def norm_dtype(x: Tensor) -> torch.dtype:
    """The format of sums over a row: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@cache
def has_half_products() -> bool:
    """Whether this CPU has instructions for 16-bit matrix products."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if any(getattr(torch.cpu, name, bool)() for name in tests):
        return True
    capability = torch.backends.cpu.get_cpu_capability()
    is_x86 = "AVX" in capability or capability == "DEFAULT"
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)  # on ARM it asks the CPU itself
    return not is_x86 and bool(supported())
