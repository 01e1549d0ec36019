"""Rotary positions: halves of a head turned by an angle of their position (Su et al. 2021, section 3.4.2).

y1 = x1 cos1 - x2 sin1, y2 = x2 cos2 + x1 sin2. The backward pass turns back and needs nothing of x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.ops.kernels import kernels_for


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


def _turn(x: Tensor, cos: Tensor, sin: Tensor, is_back: bool) -> Tensor:
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
