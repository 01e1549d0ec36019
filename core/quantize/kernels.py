"""bitsandbytes' CUDA kernel for NF4, where it is installed; our own packing is the one that it reads.

Only unpacking is taken from it: weights are always packed by `nf4.py`, so that they are the same on every machine.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from core.quantize.size import NF4_BLOCK

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def is_installed() -> bool:
    """Whether bitsandbytes can be imported."""
    return find_spec("bitsandbytes") is not None


def can_run(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel serves this device and number format."""
    return device.type == "cuda" and torch.version.cuda is not None and dtype in _DTYPES and is_installed()


def dequantize_nf4(packed: Tensor, absmax: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The values (out, in) of packed codes with the float32 absmax of every block of 64."""
    functional: Any = import_module("bitsandbytes.functional")
    state = functional.QuantState(absmax, torch.Size(shape), blocksize=NF4_BLOCK, quant_type="nf4", dtype=dtype)
    values: Tensor = functional.dequantize_4bit(packed.view(-1, 1), state)
    return values
