"""Attention of short examples of 16-bit numbers on a CPU: heads that share a key are one matrix, products are float32.

torch's kernel works in blocks that pay off for long rows, and where examples share a beginning, autograd splits and
joins their tensors around every call of it. Here one node takes and gives whole rows, and numbers are widened on the
way into the matrices. In exchange the weights (H, t, s) of a pass are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.ops.precision import norm_dtype

MOST_SEEN = 256  # positions that a query may see: above, torch's kernel is faster


@dataclass(frozen=True)
class Part:
    """`count` neighbouring examples of one length."""

    start: int  # position of the first
    count: int
    length: int
    before: int  # positions at the beginning of the row that they see as well
    mask: Tensor  # (length * H / K, before + length): 0 or minus infinity, as wide as the matrices

    @property
    def seen(self) -> int:
        """Positions that the last query sees."""
        return self.before + self.length

    def of(self, x: Tensor, groups: int) -> Tensor:
        """Its positions of x (T, H, D), a view (count, groups, length, H / groups, D)."""
        own = x[self.start : self.start + self.count * self.length]
        return own.view(self.count, self.length, groups, -1, x.shape[2]).transpose(1, 2)


def is_short(query: Tensor, key: Tensor, value: Tensor, seen: int) -> bool:
    """Whether attention of query (1, H, T, D) that sees up to `seen` positions is faster here: it is of 16-bit numbers.

    torch's kernel would have to be given these widened, as it takes thrice as long in 16 bits backward.
    """
    is_alike = key.shape == value.shape and query.dtype == key.dtype == value.dtype
    return query.device.type == "cpu" and query.dtype.itemsize == 2 and is_alike and seen <= MOST_SEEN


def short_attention(query: Tensor, key: Tensor, value: Tensor, parts: Sequence[Part], scaling: float) -> Tensor:
    """Attention within each example: query (1, H, T, D), key and value (1, K, T, D) to (1, T, H, D)."""
    made: Tensor = _ShortAttention.apply(query, key, value, parts, scaling)  # type: ignore[no-untyped-call]
    return made


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: Sequence[Part], scaling: float) -> Tensor:
        q, k, v = (each.squeeze(0).transpose(0, 1) for each in (query, key, value))  # (T, H, D)
        groups = k.shape[1]
        out = q.new_empty(q.shape)
        kept: list[Tensor] = []
        for part in parts:
            queries, keys, values = _matrix(part.of(q, groups)), _seen(k, part), _seen(v, part)
            weights = torch.baddbmm(part.mask, queries, keys.mT, alpha=scaling).softmax(-1)
            _put(part.of(out, groups), weights @ values)
            kept += [queries, keys, values, weights]
        ctx.save_for_backward(*kept)
        ctx.parts, ctx.scaling, ctx.sizes = parts, scaling, (len(q), groups)
        return out.unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_out = gradients[0].squeeze(0)
        rows, groups = ctx.sizes
        d_q = torch.empty_like(d_out)
        d_k, d_v = (d_out.new_empty(rows, groups, d_out.shape[2], dtype=norm_dtype(d_out)) for _ in range(2))
        for index, part in enumerate(ctx.parts):
            queries, keys, values, weights = ctx.saved_tensors[4 * index : 4 * index + 4]
            d_made = _matrix(part.of(d_out, groups))
            d_scores = torch._softmax_backward_data(d_made @ values.mT, weights, -1, weights.dtype)
            _put(part.of(d_q, groups), _scaled_product(d_scores, keys, ctx.scaling))
            _add_seen(d_k, part, _scaled_product(d_scores.mT, queries, ctx.scaling))
            _add_seen(d_v, part, weights.mT @ d_made)
        found = (each.to(d_out.dtype).transpose(0, 1).unsqueeze(0) for each in (d_q, d_k, d_v))
        return *found, None, None


def _matrix(own: Tensor) -> Tensor:
    """(count, K, length, G, D) as matrices (count * K, length * G, D), 16 bits widened."""
    return torch.empty(own.shape, dtype=norm_dtype(own)).copy_(own).flatten(2, 3).flatten(0, 1)


def _put(places: Tensor, matrices: Tensor) -> None:
    places.copy_(matrices.view(places.shape))


def _seen(x: Tensor, part: Part) -> Tensor:
    """What a part sees of x (T, K, D), as matrices (count * K, seen, D), 16 bits widened."""
    made = torch.empty(part.count, x.shape[1], part.seen, x.shape[2], dtype=norm_dtype(x))
    made[:, :, : part.before] = x[: part.before].transpose(0, 1)
    made[:, :, part.before :] = part.of(x, x.shape[1]).squeeze(3)
    return made.flatten(0, 1)


def _add_seen(total: Tensor, part: Part, gradient: Tensor) -> None:
    """Give total (T, K, D) the gradient of `_seen`: all parts add to the beginning that they share."""
    own = gradient.view(part.count, total.shape[1], part.seen, total.shape[2])
    part.of(total, total.shape[1]).squeeze(3).copy_(own[:, :, part.before :])
    if part.before:
        total[: part.before] += own[:, :, : part.before].sum(0).transpose(0, 1)


def _scaled_product(one: Tensor, other: Tensor, scale: float) -> Tensor:
    nothing = one.new_empty(1, 1, 1)  # as beta is 0, it is not read
    return torch.baddbmm(nothing, one, other, beta=0, alpha=scale)
