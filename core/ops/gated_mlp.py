"""A decoder layer's MLP with its norm and its residual: x + post(down(act(gate(h)) up(h))), h = norm(x).

Kept are x, one number a row, gate and up: 3 times the width of the hidden state less than autograd keeps. Where memory
is short gate and up are computed again: a quarter more products (8B shape), for two thirds of what the layer keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.ops.gating import Activation, gate_backward, gate_forward, gate_reference
from core.ops.group import Group, Kept
from core.ops.lora_gate import around_of, joins, lora_gate_backward, lora_gate_forward
from core.ops.output_linear import end_branch
from core.ops.precision import compute_dtype
from core.ops.rms_norm import Norm, Normed, in_factors, norm_again, norm_backward, norm_forward, rms_norm_reference
from core.ops.scaled_gate import scaled_gate_backward, scaled_gate_forward, scales
from core.ops.scaling import scaled


@dataclass(frozen=True)
class GatedMLP:
    """The parts of an MLP; `inner` is gate and up, or the one layer that gives both."""

    norm: Norm
    inner: Group
    outer: Group
    activation: Activation
    post: Norm | None = None  # Gemma 2 and 3 have one

    def live_parameters(self) -> tuple[Tensor, ...]:
        """Those of gate, up and down, for one forward pass."""
        return (*self.inner.live_parameters(), *self.outer.live_parameters())

    def reference(self, x: Tensor) -> Tensor:
        """The definition, for x (..., D); dropout off."""
        h = rms_norm_reference(x, self.norm)
        e, u = halves([each.reference(h) for each in self.inner.projections])
        (down,) = self.outer.projections
        y = down.reference(gate_reference(e, u, self.activation))
        return x + (y if self.post is None else rms_norm_reference(y, self.post))


def gated_mlp(x: Tensor, mlp: GatedMLP, keeps_inner: bool = True) -> Tensor:
    """x + MLP(x) for x (..., D); without `keeps_inner`, gate and up are computed again in the backward pass."""
    made: Tensor = _GatedMLP.apply(x, mlp, keeps_inner, *mlp.live_parameters())  # type: ignore[no-untyped-call]
    return made


def halves(outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(gate, up): two outputs, or the halves of one."""
    e, u = outputs if len(outputs) == 2 else outputs[0].chunk(2, dim=-1)
    return e, u


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mlp: GatedMLP, keeps_inner: bool, *parameters: Tensor) -> Tensor:
        rows, wide = x.reshape(-1, x.shape[-1]), compute_dtype(x)
        h, rstd = norm_forward(rows, mlp.norm, wide)
        joined = joins(mlp.inner, mlp.outer, mlp.activation, h)
        is_scaled = scales(mlp.inner, mlp.activation, h)
        outputs, inner = mlp.inner.forward(h, bare=2 if joined or is_scaled else 0)
        del h
        smalls = None  # of the layer behind
        if joined:
            around = around_of(inner, mlp.outer.factors(wide), mlp.outer.scales[0])
            gated, small = lora_gate_forward(*halves(outputs), around, mlp.activation)
            smalls = [small]
        elif is_scaled:
            gated = scaled_gate_forward(inner.products, inner.gains, mlp.activation)
        else:
            gated = gate_forward(*halves(outputs), mlp.activation)
        y, outer, post_kept = end_branch(gated, rows, mlp.outer, mlp.post, smalls)
        ctx.mlp, ctx.dtype, ctx.shape, ctx.keeps_inner = mlp, wide, x.shape, keeps_inner
        ctx.joined, ctx.is_scaled = joined, is_scaled
        pairs = zip(mlp.inner.projections, outputs, strict=True)
        plain = [own.to(x.dtype) for each, own in pairs if not each.is_dora and keeps_inner]
        inner = inner if keeps_inner else inner.without_products()
        ctx.counts = len(plain), len(inner.tensors), len(outer.tensors)
        ctx.save_for_backward(
            rows, rstd, *(post_kept or (None, None)), *plain, *inner.tensors, *outer.tensors, *parameters
        )
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        mlp, wants = ctx.mlp, ctx.needs_input_grad
        rows, rstd, y, y_rstd, *rest = ctx.saved_tensors
        outputs, inner, outer, parameters = _pieces(rest, ctx.counts)
        middle = len(mlp.inner.parameters)
        residual = gradient.reshape(rows.shape)
        flat = residual.to(ctx.dtype)
        if mlp.post is not None:
            flat = norm_backward(flat, y.to(ctx.dtype), y_rstd, mlp.post)
        kept_outer, own = mlp.outer.unpack((*outer, *parameters[middle:]))
        behind = mlp.outer.backward(kept_outer, [flat], own, wants[3 + middle :])
        kept, own = mlp.inner.unpack((*inner, *parameters[:middle]), ctx.keeps_inner)
        bare = 2 if ctx.joined or ctx.is_scaled else 0
        if ctx.keeps_inner and not ctx.is_scaled:
            outputs = _outputs_again(mlp.inner, outputs, kept, ctx.dtype)
        elif not ctx.keeps_inner:
            outputs, kept = mlp.inner.again(norm_again(rows, rstd, mlp.norm, ctx.dtype), kept, bare)
        of_b: list[Tensor] = []
        sums: list[Tensor] = []
        if ctx.joined:
            around = around_of(kept, kept_outer.factors, mlp.outer.scales[0])
            d_e, d_u = flat.new_empty(len(flat), 2 * mlp.outer.width).chunk(2, dim=1)  # side by side, as q, k and v are
            behind.of_input_bare(d_e)
            of_a, *of_b = lora_gate_backward(d_e, d_u, *halves(outputs), around, behind.joined, mlp.activation)
            behind.take_a([of_a])
            found_outer = behind.of_parameters(None)
        else:
            d_gated = behind.of_input()
            if ctx.is_scaled:
                gated, d_e, d_u, *sums = scaled_gate_backward(d_gated, kept.products, kept.gains, mlp.activation)
            else:
                gated, d_e, d_u = gate_backward(d_gated, *halves(outputs), mlp.activation)
            found_outer = behind.of_parameters(Normed(gated))
            del gated, d_gated
        del outputs, behind
        inner_gradients = [d_e, d_u] if len(mlp.inner.projections) == 2 else [torch.cat([d_e, d_u], dim=-1)]
        del d_e, d_u
        passed = mlp.inner.backward(kept, inner_gradients, own, wants[3 : 3 + middle], sums, of_b)
        needs_h = mlp.inner.needs_input(wants[3 : 3 + middle])
        found_inner = passed.of_parameters(in_factors(rows, rstd, mlp.norm, ctx.dtype) if needs_h else None)
        d_x = norm_backward(passed.of_input(), rows, rstd, mlp.norm, residual).view(ctx.shape) if wants[0] else None
        return (d_x, None, None, *found_inner, *found_outer)


def _outputs_again(group: Group, outputs: Sequence[Tensor], kept: Kept, dtype: torch.dtype) -> list[Tensor]:
    """The outputs of a group: kept as they were, or a DoRA's from its product before it was scaled."""
    plain, products, gains = iter(outputs), iter(kept.products), iter(kept.gains)
    return [
        scaled(each, next(products), next(gains)) if each.is_dora else next(plain).to(dtype)
        for each in group.projections
    ]


def _pieces(rest: Sequence[Tensor], counts: Sequence[int]) -> list[Sequence[Tensor]]:
    pieces, start = [], 0
    for count in counts:
        pieces.append(rest[start : start + count])
        start += count
    return [*pieces, rest[start:]]
