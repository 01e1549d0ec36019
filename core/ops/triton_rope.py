"""Rotary positions as a Triton kernel, which adds a small product first where q, k or v have a LoRA."""

from __future__ import annotations

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.triton_products import _load_small

TOKENS, HEADS = 16, 8  # that a program turns at most


@triton.jit  # type: ignore[untyped-decorator]
def _rope(  # type: ignore[no-untyped-def]
    x, cos, sin, small, b, made, tokens, length, heads, of_q, turned, size, half, rank, apart, x_batch, x_token,
    x_head, made_batch, made_token, made_head, angle_batch, small_stride, IS_BACK: tl.constexpr,
    HAS_SMALL: tl.constexpr, RANK: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # The heads of q come first, then those of k up to the `turned`-th, then those of v. All of a program's are alike.
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    batch, position = token // length, token % length
    column = tl.arange(0, BLOCK)
    inside = (token < tokens)[:, None] & (column < half)[None, :]
    head = tl.program_id(1) * HEADS
    source = (batch * x_batch + position * x_token + head * x_head)[:, None] + column[None, :]
    target = (batch * made_batch + position * made_token + head * made_head)[:, None] + column[None, :]
    next_1 = tl.load(x + source, mask=inside, other=0.0)
    next_2 = tl.load(x + source + half, mask=inside, other=0.0)
    angle = (batch * angle_batch + position * 2 * half)[:, None] + column[None, :]
    known = inside & (head < turned)  # the others are turned by nothing
    cos_1 = tl.load(cos + angle, mask=known, other=1.0).to(tl.float32)
    cos_2 = tl.load(cos + angle + half, mask=known, other=1.0).to(tl.float32)
    sin_1 = tl.load(sin + angle, mask=known, other=0.0).to(tl.float32)
    sin_2 = tl.load(sin + angle + half, mask=known, other=0.0).to(tl.float32)
    small += apart * ((head >= of_q).to(tl.int32) + (head >= turned).to(tl.int32))
    if HAS_SMALL:
        left = _load_small(small, token, tokens, rank, small_stride, RANK)
    for _ in range(HEADS):
        first, second = next_1.to(tl.float32), next_2.to(tl.float32)
        further = inside & (head + 1 < heads)
        source += x_head
        next_1 = tl.load(x + source, mask=further, other=0.0)
        next_2 = tl.load(x + source + half, mask=further, other=0.0)
        if HAS_SMALL:
            of_first = _load_small(b + head * size * rank, column, half, rank, rank, RANK)
            of_second = _load_small(b + (head * size + half) * rank, column, half, rank, rank, RANK)
            first = tl.dot(left, tl.trans(of_first), first, input_precision="ieee")
            second = tl.dot(left, tl.trans(of_second), second, input_precision="ieee")
        if IS_BACK:
            turned_1 = first * cos_1 + second * sin_2
            turned_2 = second * cos_2 - first * sin_1
        else:
            turned_1 = first * cos_1 - second * sin_1
            turned_2 = second * cos_2 + first * sin_2
        known = inside & (head < heads)
        tl.store(made + target, turned_1.to(made.dtype.element_ty), mask=known)
        tl.store(made + target + half, turned_2.to(made.dtype.element_ty), mask=known)
        target += made_head
        head += 1


def rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    is_back: bool,
    own: tuple[Tensor, Tensor] | None = None,
    made: Tensor | None = None,
    parts: tuple[int, int] | None = None,
) -> Tensor:
    """`kernels.Kernels.rope`: x (B, T, H, D), cos and sin (B or 1, T, R), S (B * T, r or 3 r) and B (H * D, r)."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    batch, length, heads, size = x.shape
    of_q, turned = parts or (heads, heads)
    half = cos.shape[-1] // 2
    made = torch.empty(x.shape, dtype=x.dtype, device=x.device) if made is None else made
    small, b = (x, x) if own is None else (own[0], own[1].contiguous())
    small = small if small.stride(-1) == 1 else small.contiguous()
    rank = 0 if own is None else b.shape[1]
    apart = rank if own is not None and small.shape[1] > rank else 0  # the S of q, k and v
    tile = {"RANK": max(16, triton.next_power_of_2(rank)), "BLOCK": max(16, triton.next_power_of_2(half))}
    shared = 0 if len(cos) == 1 else length * 2 * half
    alike = heads if parts is None else gcd(*parts) or heads
    tokens, at_once = batch * length, max(count for count in range(1, HEADS + 1) if alike % count == 0)
    _rope[(triton.cdiv(tokens, TOKENS), triton.cdiv(heads, at_once))](
        x, cos, sin, small, b, made, tokens, length, heads, of_q, turned, size, half, rank, apart, *x.stride()[:3],
        *made.stride()[:3], shared, small.stride(0), IS_BACK=is_back, HAS_SMALL=own is not None, TOKENS=TOKENS,
        HEADS=at_once, **tile,
    )  # fmt: skip
    if 2 * half < size and made.data_ptr() != x.data_ptr():
        made[..., 2 * half :] = x[..., 2 * half :]
    return made
