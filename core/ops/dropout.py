"""Dropout that keeps a seed instead of a mask: the backward pass draws the same mask again.

On the CPU the mask comes from a generator of the seed. On other devices the seed is a tensor there and the mask a hash
of it and of each number's place, so that nothing waits for the host and a CUDA graph draws anew at every replay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.ops.kernels import kernels_for

_SEEDS = 2**31 - 1


def draw_seed(device: torch.device) -> Tensor:
    """A seed (1) from the device's own random numbers, so that a resumed run draws the same ones."""
    return torch.randint(_SEEDS, (1,), device=device)


def keep_mask(seed: Tensor, like: Tensor, p: float) -> Tensor:
    """1 with probability 1 - p and else 0, in the shape, dtype and place of `like`."""
    if like.device.type == "cpu":
        generator = torch.Generator().manual_seed(int(seed))
        return torch.empty(like.shape, dtype=like.dtype).bernoulli_(1 - p, generator=generator)
    return (_hashes(seed, like) >= int(p * 2**31)).to(like.dtype)


def _hashes(seed: Tensor, like: Tensor) -> Tensor:
    """31 even bits for every number of `like`: lowbias32 (Wellons 2018) of its place, moved by the seed's own hash."""
    places = torch.arange(like.numel(), device=like.device, dtype=torch.int64)
    return _mix(places + _mix(seed)).view(like.shape) & 0x7FFFFFFF


def _mix(bits: Tensor) -> Tensor:
    bits = bits & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = ((bits ^ (bits >> shift)) * factor) & 0xFFFFFFFF
    return bits ^ (bits >> 16)


def dropped(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """x with a share p of its numbers 0 and the others over 1 - p: its own gradient too, applied to a gradient."""
    if (fast := kernels_for(x)) is not None:
        return fast.dropped(x, seed, p)
    return keep_mask(seed, x, p).mul_(x).mul_(1 / (1 - p))


def dropout_reference(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """The definition, by plain autograd."""
    return x * keep_mask(seed, x, p) / (1 - p)


def dropout(x: Tensor, p: float, is_training: bool) -> Tensor:
    """Dropout as torch's, except that it keeps eight bytes for the backward pass."""
    if not p or not is_training:
        return x
    made: Tensor = _Dropout.apply(x, draw_seed(x.device), p)  # type: ignore[no-untyped-call]
    return made


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, p: float) -> Tensor:
        ctx.p = p
        ctx.save_for_backward(seed)
        return dropped(x.contiguous(), seed, p)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (seed,) = ctx.saved_tensors
        return dropped(gradients[0].contiguous(), seed, ctx.p), None, None
