"""Products scaled by column, as DoRA does, and small ones by row."""

from __future__ import annotations

import torch
from torch import Tensor

from core.ops.kernels import kernels_for
from core.ops.projection import Projection


def scaled(each: Projection, product: Tensor, gain: Tensor, residual: Tensor | None = None) -> Tensor:
    """DoRA's output gain * product + bias (+ residual), all (N, out)."""
    start = each.start(product.dtype, residual)
    if (kernels := kernels_for(product)) is not None:
        return kernels.scale_columns(product, gain, start)
    made = product * gain  # in the gain's format, which is the wider one
    return (made if start is None else made.add_(start)).to(product.dtype)


def scale_back(gradient: Tensor, product: Tensor, gain: Tensor, made: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(gradient * gain, the sum of gradient * product over the rows (out)) of two (N, out) and a gain (out).

    The first is written to `made`, if given.
    """
    if (kernels := kernels_for(gradient)) is not None:
        return kernels.scale_back(gradient, product, gain, made)
    made = torch.empty_like(gradient) if made is None else made
    return torch.mul(gradient, gain, out=made), (gradient.to(gain.dtype) * product).sum(0)


def scale_rows(small: Tensor, factor: Tensor, scale: float = 1.0) -> Tensor:
    """scale * small (N, r) times factor (N, 1), which may be in a wider format, rounded once."""
    if (kernels := kernels_for(small)) is not None:
        return kernels.scale_rows(small, factor, scale)
    return torch.mul(small, factor if scale == 1.0 else factor * scale, out=torch.empty_like(small))
