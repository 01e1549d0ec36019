"""The CUDA kernels that unpack NF4: our own, or bitsandbytes' where Triton cannot compile; they read one packing.

Only unpacking is done by them: weights are always packed by `nf4.py`, so that they are the same on every machine.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from core.ops.kernels import kernels_for
from core.quantize.nf4 import Absmax, dequantize_absmax
from core.quantize.size import NF4_BLOCK

TRITON, BITSANDBYTES = "our Triton kernel", "bitsandbytes' CUDA kernel"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def is_installed() -> bool:
    """Whether bitsandbytes can be imported."""
    return find_spec("bitsandbytes") is not None


def name_of(like: Tensor, dtype: torch.dtype) -> str:
    """The kernel that serves a tensor's device and a number format, empty for none."""
    if not like.is_cuda or torch.version.cuda is None or dtype not in _DTYPES:
        return ""
    if kernels_for(like.new_empty(0, dtype=dtype)) is not None:
        return TRITON
    return BITSANDBYTES if is_installed() else ""


def dequantize_nf4(packed: Tensor, absmax: Absmax, shape: tuple[int, int], dtype: torch.dtype) -> Tensor | None:
    """The values (out, in) of packed codes; None where no kernel serves."""
    name = name_of(packed, dtype)
    if name == TRITON:
        own: Any = import_module("core.quantize.triton_nf4")
        made: Tensor = own.dequantize(packed, absmax, shape, dtype)
        return made
    return by_bitsandbytes(packed, dequantize_absmax(absmax), shape, dtype) if name else None


def by_bitsandbytes(packed: Tensor, absmax: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The same from the float32 absmax of every block of 64."""
    functional: Any = import_module("bitsandbytes.functional")
    state = functional.QuantState(absmax, torch.Size(shape), blocksize=NF4_BLOCK, quant_type="nf4", dtype=dtype)
    values: Tensor = functional.dequantize_4bit(packed.view(-1, 1), state)
    return values
