"""Products x W^T, most of a step's work, from the library that is fastest on the CPU at hand.

torch takes float32 products from MKL, which leaves half of AVX-512 unused on AMD's CPUs. oneDNN, which torch has beside
it for 16-bit numbers, takes half the time there. But it adds up all numbers of a row in one go, where MKL adds up parts
of it and then these, which is more exact: so oneDNN is given the same parts, and the result is the same to the bit.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FEWEST_ROWS = 96  # below, preparing the weight takes longer than is won
PART = 192  # numbers of a row that are added up in one go
COLUMNS = 1536  # of the result that are formed at once,
NUMBERS = 1 << 19  # with as many rows as stay in a core's cache until the next part is added


def product(x: Tensor, weight: Tensor, start: Tensor | None = None) -> Tensor:
    """x weight^T (+ start) of x (N, in), weight (out, in) and a start (out) or (N, out), which may be overwritten."""
    if takes_onednn(x) and len(x) >= FEWEST_ROWS:
        return _by_tiles(x, weight, start)
    if start is None:
        return x @ weight.T
    return torch.addmm(start, x, weight.T) if start.dim() == 1 else start.addmm_(x, weight.T)


def takes_onednn(x: Tensor) -> bool:
    """Whether products with x are oneDNN's."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and prefers_onednn()


def _by_tiles(x: Tensor, weight: Tensor, start: Tensor | None) -> Tensor:
    rows = max(1, NUMBERS // min(COLUMNS, len(weight)))
    if len(x) <= rows and len(weight) <= COLUMNS:
        return _tile(_parts(x), _dense_parts(weight), start)
    is_whole = start is not None and start.dim() == 2
    made = start if start is not None and is_whole else x.new_empty(len(x), len(weight))
    for column in range(0, len(weight), COLUMNS):
        own = _dense_parts(weight[column : column + COLUMNS])
        for row in range(0, len(x), rows):
            target = made[row : row + rows, column : column + COLUMNS]
            first = target if is_whole else None if start is None else start[column : column + COLUMNS]
            target.copy_(_tile(_parts(x[row : row + rows]), own, first))
    return made


def _parts(matrix: Tensor) -> list[Tensor]:
    return list(torch.split(matrix, PART, dim=1))


def _dense_parts(weight: Tensor) -> list[Tensor]:
    """Those of a weight, whose rows or columns must not lie apart: that would take oneDNN a thousand times as long."""
    return [part.T.contiguous().T if part.stride(0) == 1 else part.contiguous() for part in _parts(weight)]


def _tile(parts: list[Tensor], weights: list[Tensor], start: Tensor | None) -> Tensor:
    linear = torch.ops.mkldnn._linear_pointwise
    bias, made = (start, None) if start is not None and start.dim() == 1 else (None, start)
    for part, weight in zip(parts, weights, strict=True):
        if made is None:
            made = linear(part, weight, bias, "none", [], "")
        else:
            made = linear.binary(part, made.contiguous(), weight, None, "add")
    assert made is not None
    return made


@cache
def prefers_onednn() -> bool:
    """Whether this is AMD's CPU with AVX-512, and torch's own form of oneDNN's product, tried once, is what it was."""
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    is_there = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_there and has_avx512 and "AuthenticAMD" in _cpu() and _is_right()


def _cpu() -> str:
    known = Path("/proc/cpuinfo")  # Linux; the other systems tell Python
    return known.read_text() if known.exists() else platform.processor()


def _is_right() -> bool:
    """Whether a product in two parts, with a start, is right; the operation is not among those that torch documents."""
    draw = torch.Generator().manual_seed(0)
    x, weight, start = (torch.randn(size, generator=draw) for size in ((3, 2 * PART), (5, 2 * PART), (3, 5)))
    wanted = start + x @ weight.T
    try:
        return torch.allclose(_by_tiles(x, weight, start), wanted, rtol=1e-4, atol=1e-4)
    except (AttributeError, RuntimeError, TypeError):
        return False
