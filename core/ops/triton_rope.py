"""Rotary positions as a Triton kernel, which adds a small product first where q, k or v have a LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.triton_products import _load_small

TOKENS, HEADS, WARPS = 16, 4, 2  # that a program turns at most, and with; the fastest of some on an H200


@triton.jit  # type: ignore[untyped-decorator]
def _turn(  # type: ignore[no-untyped-def]
    q, k, v, cos, sin, small, b, made, tokens, length, heads, of_q, turned, size, half, rank, apart,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, made_batch, made_token, made_head,
    angle_batch, small_stride, IS_BACK: tl.constexpr, HAS_SMALL: tl.constexpr, RANK: tl.constexpr,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # The heads of q come first, then those of k up to the `turned`-th, then those of v. All of a program's are alike.
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    batch, position = token // length, token % length
    column = tl.arange(0, BLOCK)
    inside = (token < tokens)[:, None] & (column < half)[None, :]
    head = tl.program_id(1) * HEADS
    is_q, is_turned = head < of_q, head < turned
    x = tl.where(is_q, q, tl.where(is_turned, k, v))
    x_batch = tl.where(is_q, q_batch, tl.where(is_turned, k_batch, v_batch))
    x_token = tl.where(is_q, q_token, tl.where(is_turned, k_token, v_token))
    x_head = tl.where(is_q, q_head, tl.where(is_turned, k_head, v_head))
    own_head = tl.where(is_q, head, tl.where(is_turned, head - of_q, head - turned))
    source = (batch * x_batch + position * x_token + own_head * x_head)[:, None] + column[None, :]
    target = (batch * made_batch + position * made_token + head * made_head)[:, None] + column[None, :]
    angle = (batch * angle_batch + position * 2 * half)[:, None] + column[None, :]
    known = inside & is_turned  # the others are turned by nothing
    cos_1 = tl.load(cos + angle, mask=known, other=1.0).to(tl.float32)
    cos_2 = tl.load(cos + angle + half, mask=known, other=1.0).to(tl.float32)
    sin_1 = tl.load(sin + angle, mask=known, other=0.0).to(tl.float32)
    sin_2 = tl.load(sin + angle + half, mask=known, other=0.0).to(tl.float32)
    small += tl.where(is_q, 0, tl.where(is_turned, apart, 2 * apart))
    if HAS_SMALL:
        left = _load_small(small, token, tokens, rank, small_stride, RANK)
    for step in tl.range(0, HEADS, num_stages=2):
        known = inside & (head + step < heads)
        first = tl.load(x + source + step * x_head, mask=known, other=0.0).to(tl.float32)
        second = tl.load(x + source + step * x_head + half, mask=known, other=0.0).to(tl.float32)
        if HAS_SMALL:
            there = tl.where(head + step < heads, half, 0)
            of_first = _load_small(b + (head + step) * size * rank, column, there, rank, rank, RANK)
            of_second = _load_small(b + ((head + step) * size + half) * rank, column, there, rank, rank, RANK)
            first = tl.dot(left, tl.trans(of_first), first, input_precision="ieee")
            second = tl.dot(left, tl.trans(of_second), second, input_precision="ieee")
        if IS_BACK:
            turned_1 = first * cos_1 + second * sin_2
            turned_2 = second * cos_2 - first * sin_1
        else:
            turned_1 = first * cos_1 - second * sin_1
            turned_2 = second * cos_2 + first * sin_2
        tl.store(made + target + step * made_head, turned_1.to(made.dtype.element_ty), mask=known)
        tl.store(made + target + step * made_head + half, turned_2.to(made.dtype.element_ty), mask=known)


def rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    is_back: bool,
    own: tuple[Tensor, Tensor] | None = None,
    made: Tensor | None = None,
) -> Tensor:
    """`kernels.Kernels.rope`: x (B, T, H, D), cos and sin (B or 1, T, R), S (B * T, r) and B (H * D, r)."""
    made = torch.empty(x.shape, dtype=x.dtype, device=x.device) if made is None else made
    turn([x], cos, sin, is_back, own, made)
    return made


def turn(
    parts: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    is_back: bool,
    own: tuple[Tensor, Tensor] | None,
    made: Tensor,
) -> None:
    """`kernels.Kernels.turn`: q, k and v (B, T, heads, D), S (B * T, 3 r) and B (all heads * D, r)."""
    parts = [each if each.stride(-1) == 1 else each.contiguous() for each in parts]
    cos, sin = cos.contiguous(), sin.contiguous()
    batch, length, heads, size = made.shape
    counts = [each.shape[2] for each in parts]
    turned, half = sum(counts[:2]), cos.shape[-1] // 2
    small, b = (made, made) if own is None else (own[0], own[1].contiguous())
    small = small if small.stride(-1) == 1 else small.contiguous()
    rank = 0 if own is None else b.shape[1]
    tile = {"RANK": max(16, triton.next_power_of_2(rank)), "BLOCK": max(16, triton.next_power_of_2(half))}
    shared = 0 if len(cos) == 1 else length * 2 * half
    tokens, alike = batch * length, gcd(*counts)
    at_once = max(count for count in range(1, min(HEADS, heads) + 1) if len(parts) == 1 or alike % count == 0)
    three = parts if len(parts) == 3 else [parts[0]] * 3
    _turn[(triton.cdiv(tokens, TOKENS), triton.cdiv(heads, at_once))](
        *three, cos, sin, small, b, made, tokens, length, heads, counts[0], turned, size, half, rank,
        rank if len(parts) == 3 else 0, *(stride for each in (*three, made) for stride in each.stride()[:3]),
        shared, small.stride(0), IS_BACK=is_back, HAS_SMALL=own is not None, TOKENS=TOKENS, HEADS=at_once,
        num_warps=WARPS, **tile,
    )  # fmt: skip
    if 2 * half < size:
        for each, target in zip(parts, torch.split(made, counts, dim=2), strict=True):
            if target.data_ptr() != each.data_ptr():
                target[..., 2 * half :] = each[..., 2 * half :]
