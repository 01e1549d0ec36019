"""A linear layer that ends a branch: residual + post_norm(linear(x)), the sum formed by the product itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core.ops.group import Group
from core.ops.precision import compute_dtype
from core.ops.rms_norm import Norm, Normed, norm_backward, norm_forward, rms_norm_reference


def output_linear_reference(x: Tensor, residual: Tensor, group: Group, post: Norm | None = None) -> Tensor:
    """The definition, for x (..., in) and residual (..., out); dropout off."""
    (projection,) = group.projections
    y = projection.reference(x)
    return residual + (y if post is None else rms_norm_reference(y, post))


def output_linear(x: Tensor, residual: Tensor, group: Group, post: Norm | None = None) -> Tensor:
    """residual + post(linear(x)) for x (..., in) and residual (..., out), in the dtype of `residual`."""
    made: Tensor = _OutputLinear.apply(x, residual, group, post, *group.live_parameters())  # type: ignore[no-untyped-call]
    return made


def end_branch(
    rows: Tensor, residual: Tensor, group: Group, post: Norm | None, smalls: Sequence[Tensor] | None = None
) -> tuple[Tensor, Any, list[Tensor]]:
    """(the sum (N, out), what the group kept, what the norm after it keeps: its input and rstd) of rows (N, in)."""
    wide = residual.to(rows.dtype)
    if post is None:
        (y,), kept = group.forward(rows, wide, smalls)
        return y.to(residual.dtype), kept, []
    (y,), kept = group.forward(rows, None, smalls)
    normed, rstd = norm_forward(y, post, y.dtype)
    return normed.add_(wide).to(residual.dtype), kept, [y.to(residual.dtype), rstd]


class _OutputLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, group: Group, post: Norm | None, *parameters: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        wide = compute_dtype(residual)
        ends = residual.reshape(-1, residual.shape[-1])
        y, kept, post_kept = end_branch(rows.to(wide), ends, group, post)
        ctx.group, ctx.post, ctx.dtype, ctx.shape, ctx.x_dtype = group, post, wide, x.shape, x.dtype
        saved = rows if group.needs_input(ctx.needs_input_grad[4:]) else None
        ctx.save_for_backward(saved, *(post_kept or (None, None)), *kept.tensors, *parameters)
        return y.view(residual.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, y, rstd, *rest = ctx.saved_tensors
        kept, parameters = ctx.group.unpack(rest)
        wants = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1]).to(ctx.dtype)
        if ctx.post is not None:
            flat = norm_backward(flat, y.to(ctx.dtype), rstd, ctx.post)
        passed = ctx.group.backward(kept, [flat], parameters, wants[4:])
        found = passed.of_parameters(None if x is None else Normed(x.to(ctx.dtype)))
        d_x = passed.of_input().to(ctx.x_dtype).view(ctx.shape) if wants[0] else None
        return (d_x, gradient if wants[1] else None, None, None, *found)
