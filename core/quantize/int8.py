"""8-bit integers from -127 to 127 with one absmax for every output of a layer (Dettmers et al. 2022, section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from core.quantize.nf4 import check_finite

STEPS = 127


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (out, in) int8 and absmax (out,) float32 of a weight (out, in); ModelError for NaN."""
    wide = weight.detach().float()
    absmax = wide.abs().amax(1)
    check_finite(absmax)
    scaled = wide / torch.where(absmax > 0, absmax, 1.0)[:, None]
    return (scaled * STEPS).round_().to(torch.int8), absmax


def dequantize_rows(codes: Tensor, absmax: Tensor, dtype: torch.dtype) -> Tensor:
    """The values (out, in): computed in float32 and rounded to `dtype` once. The largest of a row is exact."""
    steps = absmax.new_full((1,), STEPS)  # a tensor: CUDA multiplies by the rounded inverse of a plain number
    return codes.float().div_(steps).mul_(absmax[:, None]).to(dtype)
