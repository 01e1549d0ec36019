"""RMSNorm and the linear layers on it, as q, k and v are: of their input only x and one number a row are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.ops.group import Group
from core.ops.precision import compute_dtype
from core.ops.rms_norm import Norm, Normed, in_factors, norm_backward, norm_forward, rms_norm_reference
from core.ops.rope import Turn

FIRST = 6  # place of the first parameter among the arguments


def normed_linear_reference(x: Tensor, norm: Norm | None, group: Group) -> list[Tensor]:
    """The definition, for x (..., in); dropout off."""
    h = x if norm is None else rms_norm_reference(x, norm)
    return [each.reference(h) for each in group.projections]


def normed_linear(x: Tensor, norm: Norm | None, group: Group, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """The outputs (..., out) in `dtype`, by default that of x (..., in)."""
    given = x, norm, group, dtype or x.dtype, False, None, *group.live_parameters()
    made: tuple[Tensor, ...] = _NormedLinear.apply(*given)  # type: ignore[no-untyped-call]
    return made


def begin_branch(
    x: Tensor, norm: Norm, group: Group, dtype: torch.dtype, turn: Turn | None = None
) -> tuple[tuple[Tensor, ...], Tensor]:
    """`normed_linear`, and x for the sum at the branch's end, whose gradient is then added in the norm's own pass.

    With a `turn` the outputs are q, k and v (B, T, heads, width), q and k turned.
    """
    *outputs, same = _NormedLinear.apply(x, norm, group, dtype, True, turn, *group.live_parameters())  # type: ignore[no-untyped-call]
    return tuple(outputs), same


class _NormedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm: Norm | None,
        group: Group,
        dtype: torch.dtype,
        returns_x: bool,
        turn: Turn | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        rows, wide = x.reshape(-1, x.shape[-1]), compute_dtype(x)
        h, rstd = (rows.to(wide), None) if norm is None else norm_forward(rows, norm, wide)
        is_added = turn is not None and turn.adds(group, h)
        outputs, kept = group.forward(h, bare=3 if is_added else 0)
        ctx.norm, ctx.group, ctx.shape, ctx.dtype, ctx.turn = norm, group, x.shape, wide, turn
        needs_rows = norm is not None and ctx.needs_input_grad[0]
        needs_rows |= group.needs_input(ctx.needs_input_grad[FIRST:])
        ctx.save_for_backward(rows if needs_rows else None, rstd if needs_rows else None, *kept.tensors, *parameters)
        made = [each.to(dtype).view(*x.shape[:-1], -1) for each in outputs]
        if turn is not None:
            made = turn.forward(made, kept if is_added else None)
        ctx.count = len(made)
        if returns_x:
            made.append(x.view_as(x))
            if not ctx.needs_input_grad[0]:
                ctx.mark_non_differentiable(made[-1])
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, rstd, *rest = ctx.saved_tensors
        group, norm, wants = ctx.group, ctx.norm, ctx.needs_input_grad
        kept, parameters = group.unpack(rest)
        given = gradients[: ctx.count]
        if ctx.turn is not None:
            given = ctx.turn.backward(given, len(group.projections))
        flat = [each.reshape(-1, each.shape[-1]).to(ctx.dtype) for each in given]
        passed = group.backward(kept, flat, parameters, wants[FIRST:])
        h = None
        if group.needs_input(wants[FIRST:]):
            h = Normed(rows.to(ctx.dtype)) if norm is None else in_factors(rows, rstd, norm, ctx.dtype)
        found = passed.of_parameters(h)
        del h
        d_h = passed.of_input() if wants[0] else None
        if d_h is not None and norm is not None:
            residual = [each.reshape(rows.shape) for each in gradients[ctx.count :]]
            d_h = norm_backward(d_h, rows, rstd, norm, *residual)
        return (None if d_h is None else d_h.view(ctx.shape), *[None] * (FIRST - 1), *found)
