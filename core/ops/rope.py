"""Rotary positions: halves of a head turned by an angle of their position (Su et al. 2021, section 3.4.2).

y1 = x1 cos1 - x2 sin1, y2 = x2 cos2 + x1 sin2. The backward pass turns back and needs nothing of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.ops.group import Group, Kept
from core.ops.kernels import WIDEST, kernels_for
from core.ops.lora_gate import DTYPES


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

    There the turn can add the small products of q's and k's LoRA in passing, and the gradients of q, k and v can come
    to lie side by side, for one large product instead of three.
    """

    cos: Tensor  # (B or 1, T, R)
    sin: Tensor
    size: int  # of a head
    key_heads: int

    def adds(self, group: Group, h: Tensor) -> bool:
        """Whether it adds the small products of q and k: two plain LoRA layers turned as a whole, on a device."""
        layers = group.projections[:2]
        return (
            kernels_for(h) is not None
            and h.dtype in DTYPES
            and self.cos.shape[-1] == self.size
            and len(group.projections) == 3
            and all(each.adapter is not None and not each.is_dora and each.rank <= WIDEST for each in layers)
        )

    def forward(self, outputs: Sequence[Tensor], kept: Kept | None) -> list[Tensor]:
        """q, k and v (B, T, heads, size) of the products (B, T, out), to which S B^T of what is `kept` is added."""
        if len(outputs) == 1:
            inner = self.key_heads * self.size
            outputs = torch.split(outputs[0], [outputs[0].shape[-1] - 2 * inner, inner, inner], dim=-1)
        heads = [each.view(*each.shape[:-1], -1, self.size) for each in outputs]
        own: list[Any] = [None, None] if kept is None else list(zip(kept.smalls[:2], kept.factors[1:3], strict=True))
        turned = [_turn(each, self.cos, self.sin, False, of) for each, of in zip(heads[:2], own, strict=True)]
        return [*turned, heads[2]]

    def backward(self, gradients: Sequence[Tensor], count: int) -> list[Tensor]:
        """The gradients (N, out) of `count` products, three or one, from those of q, k and v."""
        widths = [each.shape[2] * self.size for each in gradients]
        if kernels_for(gradients[0]) is None:
            turned = [*(_turn(each, self.cos, self.sin, True) for each in gradients[:2]), gradients[2]]
            flat = [each.reshape(-1, width) for each, width in zip(turned, widths, strict=True)]
            return flat if count == 3 else [torch.cat(flat, dim=1)]
        batch, length = gradients[0].shape[:2]
        whole = gradients[0].new_empty(batch, length, sum(widths))
        parts = [torch.unflatten(part, -1, (-1, self.size)) for part in torch.split(whole, widths, dim=-1)]
        for each, part in zip(gradients[:2], parts[:2], strict=True):
            _turn(each, self.cos, self.sin, True, made=part)
        parts[2].copy_(gradients[2])
        joined = whole.view(-1, sum(widths))
        return list(torch.split(joined, widths, dim=1)) if count == 3 else [joined]


def _turn(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    is_back: bool,
    own: tuple[Tensor, Tensor] | None = None,
    made: Tensor | None = None,
) -> Tensor:
    """x (B, T, H, D), or x + S B^T of its `own` S and B, turned; written to `made` where that is given."""
    if (fast := kernels_for(x)) is not None:
        return fast.rope(x, cos, sin, is_back, own, made)
    assert own is None and made is None
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
