"""Products with trained factors, of layers that are not fused: the factors' gradients are summed in their own format.

Autograd would round the gradient of a float32 factor to the 16 bits in which it was multiplied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from core.ops.wide_product import wide_product


def factor_linear(x: Tensor, factor: Tensor) -> Tensor:
    """x factor^T (..., r) of x (..., in) and a factor (r, in), in the format of x."""
    if not (torch.is_grad_enabled() and factor.requires_grad):
        return F.linear(x, factor.to(x.dtype))
    made: Tensor = _FactorProduct.apply(x, factor, None, 1.0)  # type: ignore[no-untyped-call]
    return made


def add_product(out: Tensor, small: Tensor, b: Tensor, scale: float) -> Tensor:
    """out + scale * small b^T for out (..., out), small (..., r) and b (out, r), in the format of `out`.

    In one call: no tensor of the size of `out` beside the result.
    """
    if not (torch.is_grad_enabled() and b.requires_grad):
        return _added(out, small, b.to(out.dtype), scale)
    made: Tensor = _FactorProduct.apply(small, b, out, scale)  # type: ignore[no-untyped-call]
    return made


def _added(out: Tensor, small: Tensor, b: Tensor, scale: float) -> Tensor:
    return shaped(torch.addmm(rows_of(out), rows_of(small), b.T, alpha=scale), out)


def shaped(made: Tensor, like: Tensor) -> Tensor:
    """A new matrix in the shape of another tensor, no view of itself: models may add to what a layer gave in place."""
    whole: Tensor = torch.ops.aten._unsafe_view(made, like.shape)
    return whole


def rows_of(x: Tensor) -> Tensor:
    """x (..., D) as one matrix (N, D)."""
    return x.reshape(-1, x.shape[-1])


class _FactorProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, start: Tensor | None, scale: float) -> Tensor:
        used = factor.to(x.dtype)
        ctx.save_for_backward(x, used)
        ctx.scale, ctx.dtype = scale, factor.dtype
        return F.linear(x, used) if start is None else _added(start, x, used, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, used) = gradients, ctx.saved_tensors
        wants_x, wants_factor, wants_start, _ = ctx.needs_input_grad
        d_x = d_factor = None
        if wants_x:
            d_x = gradient @ used
            d_x = d_x if ctx.scale == 1.0 else d_x.mul_(ctx.scale)
        if wants_factor:
            d_factor = wide_product(rows_of(gradient).T, rows_of(x), ctx.dtype, ctx.scale)
        return d_x, d_factor, gradient if wants_start else None, None
