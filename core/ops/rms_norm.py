"""RMSNorm with a frozen weight: y = x rstd (w + offset), rstd = 1 / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019).

Only x and rstd are kept, one number a row. What follows reads y backward for the gradients of its A alone, S^T y: there
y stays in its factors (`Normed`), as (S rstd)^T x gain needs no pass that forms it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core.ops.kernels import kernels_for
from core.ops.precision import norm_dtype

Gains = dict[torch.dtype, tuple[Tensor, tuple[int, int]]]  # by format, with the state of the weight


@dataclass(frozen=True)
class Norm:
    """The settings of one frozen norm."""

    weight: Tensor  # (D)
    eps: float
    offset: float = 0.0  # Gemma's norms multiply by 1 + w
    gains: Gains = field(default_factory=dict)  # of the module: a recorded graph goes on reading what it has read

    def gain(self, dtype: torch.dtype) -> Tensor:
        """What it multiplies by, (D); made anew when the weight has changed."""
        made, of = self.gains.get(dtype, (None, None))
        state = self.weight.data_ptr(), self.weight._version
        if made is None or of != state:
            made = self.weight.detach().to(dtype)
            made = made + self.offset if self.offset else made
            self.gains[dtype] = made, state
        return made


@dataclass(frozen=True)
class Normed:
    """y (N, D) in factors: x rstd gain, or x where nothing was normed."""

    x: Tensor  # (N, D)
    rstd: Tensor | None = None  # (N, 1)
    gain: Tensor | None = None  # (D)


def rms_norm_reference(x: Tensor, norm: Norm) -> Tensor:
    """The definition: x (..., D), summed in float32 or better and rounded once."""
    wide = x.to(norm_dtype(x))
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
    return (wide * rstd * (norm.weight.to(wide.dtype) + norm.offset)).to(x.dtype)


def rms_norm(x: Tensor, norm: Norm) -> Tensor:
    """y (..., D) of x (..., D); no gradient for the weight."""
    made: Tensor = _RMSNorm.apply(x, norm)  # type: ignore[no-untyped-call]
    return made


def norm_rstd(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) of every row of x (N, D), as (N, 1)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=norm_dtype(x))
    return torch.rsqrt(length.square_().div_(x.shape[-1]).add_(norm_eps(eps)))


def norm_eps(eps: float) -> float:
    """As a plain number: some configs hold it as text."""
    return float(eps)


def norm_forward(x: Tensor, norm: Norm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(y (N, D) in `dtype`, rstd (N, 1)) of rows x (N, D)."""
    if (fast := kernels_for(x)) is not None and dtype == x.dtype:
        return fast.norm_forward(x, norm.weight, norm.eps, norm.offset)
    wide = x.to(norm_dtype(x))
    rstd = norm_rstd(wide, norm.eps)
    return _times(wide, rstd, wide is not x).mul_(norm.gain(rstd.dtype)).to(dtype), rstd


def norm_again(x: Tensor, rstd: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
    """y (N, D) in `dtype` from what was kept of it."""
    if (fast := kernels_for(x)) is not None and dtype == x.dtype:
        return fast.norm_again(x, rstd, norm.weight, norm.offset)
    wide = x.to(rstd.dtype)
    return _times(wide, rstd, wide is not x).mul_(norm.gain(rstd.dtype)).to(dtype)


def in_factors(x: Tensor, rstd: Tensor, norm: Norm, dtype: torch.dtype) -> Normed:
    """y (N, D) in `dtype` from what was kept of it, for products with y.

    It is formed where a gradient times rstd may be too small for the format.
    """
    if dtype == torch.float16:
        return Normed(norm_again(x, rstd, norm, dtype))
    return Normed(x.to(dtype), rstd, norm.gain(rstd.dtype))


def norm_backward(gradient: Tensor, x: Tensor, rstd: Tensor, norm: Norm, residual: Tensor | None = None) -> Tensor:
    """The gradient of x (N, D) in its dtype, from that of y; plus `residual`, what reaches x past the norm."""
    if (fast := kernels_for(x)) is not None and gradient.dtype == x.dtype:
        return fast.norm_backward(gradient, x, rstd, norm.weight, norm.offset, residual)
    g = gradient.to(rstd.dtype)
    g, wide = _times(g, norm.gain(g.dtype), g is not gradient), x.to(g.dtype)
    share = (g * wide).sum(-1, keepdim=True).mul_(rstd.pow(3)).div_(x.shape[-1])
    g.mul_(rstd).addcmul_(wide, share, value=-1)
    return (g if residual is None else g.add_(residual.to(g.dtype))).to(x.dtype)


def _times(wide: Tensor, factor: Tensor, in_place: bool) -> Tensor:
    """A product in one format: on a CPU one of two formats takes three times as long as to widen the narrower first."""
    return wide.mul_(factor) if in_place else wide * factor


class _RMSNorm(torch.autograd.Function):
    """A norm by itself, such as those of Qwen3's query and key heads."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Norm) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y, rstd = norm_forward(rows, norm, x.dtype)
        ctx.norm = norm
        ctx.save_for_backward(x, rstd)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x, rstd = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        return norm_backward(gradients[0].reshape(rows.shape), rows, rstd, ctx.norm).view(x.shape), None
