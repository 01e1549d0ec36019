"""Rotary positions: halves of a head turned by an angle of their position (Su et al. 2021, section 3.4.2).

y1 = x1 cos1 - x2 sin1, y2 = x2 cos2 + x1 sin2. The backward pass turns back and needs nothing of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.ops.adjacent import below_each_other, side_by_side
from core.ops.group import Group, Kept, add_product
from core.ops.kernels import HALVES, WIDEST, kernels_for


def rope_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The definition, for x (B, T, H, D) and cos, sin (B or 1, T, R) with R <= D; the rest of a head stays."""
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    first, second = turned.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, rest], dim=-1)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, T, H, D) turned by cos and sin (B or 1, T, R); only these are kept."""
    turned: Tensor = _RoPE.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return turned


@dataclass(frozen=True)
class Turn:
    """The rotary positions of q and k, done by the function whose products give them.

    There the turn can add the small products of q's, k's and v's LoRA in passing, and the gradients of q, k and v can
    come to lie side by side, for one large product instead of three.
    """

    cos: Tensor  # (B or 1, T, R)
    sin: Tensor
    size: int  # of a head
    key_heads: int

    def adds(self, group: Group, h: Tensor) -> bool:
        """Whether it adds the small products: those of three plain LoRA layers turned as a whole, on a device."""
        return (
            kernels_for(h) is not None
            and h.dtype in HALVES
            and self.cos.shape[-1] == self.size
            and len(group.projections) == 3
            and all(each.adapter is not None and not each.is_dora for each in group.projections)
            and max(group.ranks) <= WIDEST
        )

    def forward(self, outputs: Sequence[Tensor], kept: Kept | None) -> list[Tensor]:
        """q, k and v (B, T, heads, size) of the products (B, T, out), to which S B^T of what is `kept` is added.

        On a device they take the place of the products.
        """
        if len(outputs) == 1:
            inner = self.key_heads * self.size
            outputs = torch.split(outputs[0], [outputs[0].shape[-1] - 2 * inner, inner, inner], dim=-1)
        heads = [self._heads(each) for each in outputs]
        fast = kernels_for(outputs[0])
        if fast is None:
            return [*(_turn(each, self.cos, self.sin, False) for each in heads[:2]), heads[2]]
        if kept is None:
            return [*(fast.rope(each, self.cos, self.sin, False, made=each) for each in heads[:2]), heads[2]]
        smalls, factors = kept.smalls, kept.factors[1:]
        x = side_by_side([each.flatten(0, 1) for each in outputs])
        small, factor = side_by_side(smalls), below_each_other(factors)
        if x is not None and small is not None and factor is not None:
            whole = self._heads(x.view(*outputs[0].shape[:2], -1))
            fast.turn(heads, self.cos, self.sin, False, (small, factor), whole)
            return heads
        owns = list(zip(smalls, factors, strict=True))
        for each, own in zip(heads[:2], owns[:2], strict=True):
            fast.rope(each, self.cos, self.sin, False, own, each)
        value, (small, factor) = outputs[2].flatten(0, 1), owns[2]
        return [*heads[:2], self._heads(add_product(value, small, factor).view(outputs[2].shape))]

    def backward(self, gradients: Sequence[Tensor], count: int) -> list[Tensor]:
        """The gradients (N, out) of `count` products, three or one, from those of q, k and v."""
        widths = [each.shape[2] * self.size for each in gradients]
        fast = kernels_for(gradients[0])
        if fast is None:
            turned = [*(_turn(each, self.cos, self.sin, True) for each in gradients[:2]), gradients[2]]
            flat = [each.reshape(-1, width) for each, width in zip(turned, widths, strict=True)]
            return flat if count == 3 else [torch.cat(flat, dim=1)]
        whole = gradients[0].new_empty(*gradients[0].shape[:2], sum(widths))
        fast.turn(gradients, self.cos, self.sin, True, None, self._heads(whole))
        joined = whole.view(-1, sum(widths))
        return list(torch.split(joined, widths, dim=1)) if count == 3 else [joined]

    def _heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (-1, self.size))


def _turn(x: Tensor, cos: Tensor, sin: Tensor, is_back: bool) -> Tensor:
    """x (B, T, H, D) turned."""
    if (fast := kernels_for(x)) is not None:
        return fast.rope(x, cos, sin, is_back)
    width, half = cos.shape[-1], cos.shape[-1] // 2
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    made = torch.empty_like(x, memory_format=torch.contiguous_format)
    first, second = x[..., :half], x[..., half:width]
    torch.mul(x[..., :width], cos, out=made[..., :width])
    sin_of_first, sin_of_second = sin[..., :half], sin[..., half:]
    if is_back:  # the transposed turn
        made[..., :half].addcmul_(second, sin_of_second)
        made[..., half:width].addcmul_(first, sin_of_first, value=-1)
    else:
        made[..., :half].addcmul_(second, sin_of_first, value=-1)
        made[..., half:width].addcmul_(first, sin_of_second)
    if width < x.shape[-1]:
        made[..., width:] = x[..., width:]
    return made


class _RoPE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, is_back=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(gradients[0], cos, sin, is_back=True), None, None
