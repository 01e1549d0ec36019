"""A weight with adapters in it, every value the exact sum rounded once to the weight's own number format.

Float64 throughout would do, at ten times the price. A change that is a product of two small factors is added in float32
instead, with a bound on the error: where both ends of the bound round to the same 16-bit number, the exact sum does
too. The few values for which they differ are worked out again in float64.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from core.adapters.base import Adapter

BLOCK_ELEMENTS = 1 << 22  # weights merged at once: 32 MiB in float64
CACHED_ELEMENTS = 1 << 20  # of the float32 way, whose several passes over a block should stay in the cache
FEW = 16  # where more than one value in so many is unsure, all of a block are worked out in float64
WORD = 4  # 16-bit values that are compared at once
UNIT = 2.0**-24  # a float32 is off by at most this much of itself
ROUNDING_UP = 1.001  # more than what a bound loses that is itself worked out in float32
Factors = tuple[Tensor, Tensor]


@torch.no_grad()
def merged_weight(weight: Tensor, active: list[Adapter], dtype: torch.dtype | None = None) -> Tensor:
    """Return `weight` with the adapters in it: the exact sums, rounded to `dtype`, or its own, once.

    MPS has no float64; there the sums are float32.
    """
    dtype = dtype or weight.dtype
    factors = _factors(weight, active)
    if factors is None or not _has_exact_float32(weight):
        return _summed(weight, active, dtype)
    return _summed_from(weight, *factors, dtype) if dtype.itemsize < 4 else _summed_wide(weight, *factors, dtype)


def _factors(weight: Tensor, active: list[Adapter]) -> Factors | None:
    """The whole change as L (rows, r) times R (r, columns), in float64; None where it is none, or not a small one."""
    parts = [adapter.weight_factors() for adapter in active]
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts) or weight.ndim != 2:
        return None
    left, right = torch.cat([part[0] for part in known], 1), torch.cat([part[1] for part in known], 0)
    is_small = 0 < 2 * left.shape[1] <= min(weight.shape)
    return (left.to(weight.device), right.to(weight.device)) if is_small else None


def _has_exact_float32(weight: Tensor) -> bool:
    """Whether float32 products are that, not the TF32 or bfloat16 that some settings allow in their place."""
    return weight.device.type != "mps" and torch.get_float32_matmul_precision() == "highest"


def _blocks(weight: Tensor, elements: int) -> list[slice]:
    step = max(1, elements // max(1, weight[:1].numel()))
    return [slice(start, start + step) for start in range(0, weight.shape[0], step)]


def _summed(weight: Tensor, active: list[Adapter], dtype: torch.dtype) -> Tensor:
    """Any adapters: sums in float64 over blocks of rows, or over all at once where an adapter needs that."""
    wide = torch.float32 if weight.device.type == "mps" else torch.float64
    elements = BLOCK_ELEMENTS if all(adapter.is_blockwise for adapter in active) else max(1, weight.numel())
    merged = torch.empty_like(weight, dtype=dtype)
    for rows in _blocks(weight, elements):
        block = weight[rows].to(wide)
        for adapter in active:
            block = adapter.merge_block(block, rows)
        merged[rows] = round_once(block, dtype)
    return merged


def _summed_wide(weight: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """To 32 bits or more: in float64, with no tensor of the size of the weight beside the result."""
    merged = torch.empty_like(weight, dtype=dtype)
    for rows in _blocks(weight, CACHED_ELEMENTS):
        merged[rows] = torch.addmm(weight[rows].double(), left[rows], right).to(dtype)
    return merged


def _summed_from(weight: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """To 16 bits: in float32, and again in float64 where that does not settle the rounding."""
    merged = torch.empty_like(weight, dtype=dtype)
    narrow_left, narrow_right = left.float(), right.float()
    # (rows, 1), >= sum |l r| by Cauchy and Schwarz; in float64, since small squares are nothing in float32
    reach = left.square().sum(1, keepdim=True).sqrt_() * right.square().sum(0).max().sqrt_()
    # the error of the product: r roundings, and those of both factors (Higham 2002, section 3.1), and underflow
    error = reach.mul_(ROUNDING_UP * UNIT * (left.shape[1] + 2)).add_(1e-36).float()
    blocks = _blocks(weight, CACHED_ELEMENTS)
    scratch = _scratch.of(weight[blocks[0]], dtype)
    for rows in blocks:
        own, low = weight[rows], merged[rows]
        block, high = (buffer[: own.numel()].view(own.shape) for buffer in (scratch[0], scratch[2]))
        torch.mm(narrow_left[rows], narrow_right, out=block)
        block += scratch[1][: own.numel()].view(own.shape).copy_(own)
        # at most three more roundings of the sum: its own, and those of the bound's two ends
        size = torch.maximum(block.amax(1, keepdim=True), block.amin(1, keepdim=True).neg_())
        slack = error[rows].add(size, alpha=ROUNDING_UP * UNIT * 3)
        low.copy_(block.sub_(slack))
        high.copy_(block.add_(slack, alpha=2))
        unsure = _differing(low, high)
        if len(unsure) * FEW > block.numel():
            low.copy_(round_once(torch.addmm(own.double(), left[rows], right), dtype))
            continue
        row, column = unsure // weight.shape[1], unsure % weight.shape[1]
        change = torch.linalg.vecdot(left[rows][row], right.T[column])
        low.view(-1)[unsure] = round_once(change + own.take(unsure).double(), dtype)
    return merged


class _Scratch(threading.local):
    """Memory for the passes over one block, kept by each thread: to get new pages took longer than the passes."""

    kept: tuple[Tensor, Tensor, Tensor] | None = None

    def of(self, block: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Two flat buffers of float32 and one of `dtype`, at least as long as the block has values."""
        kept = self.kept
        is_fit = kept is not None and len(kept[0]) >= block.numel() and kept[2].dtype == dtype
        if kept is None or not is_fit or kept[0].device != block.device:
            with torch.inference_mode(False):  # else nobody could write to it outside of that
                wide = torch.empty(2, block.numel(), dtype=torch.float32, device=block.device)
                kept = wide[0], wide[1], torch.empty(block.numel(), dtype=dtype, device=block.device)
            self.kept = kept if block.device.type == "cpu" else None  # a GPU's allocator keeps memory by itself
        return kept


_scratch = _Scratch()


def _differing(low: Tensor, high: Tensor) -> Tensor:
    """Where two 16-bit tensors have different bits: indices into the flattened tensor."""
    one, other = low.view(torch.int16).flatten(), high.view(torch.int16).flatten()
    if low.device.type != "cpu":
        return torch.ne(one, other).nonzero().squeeze(1)
    ours, theirs = one.numpy(), other.numpy()  # NumPy finds them twenty times as fast as torch
    if len(ours) % WORD:
        return torch.from_numpy(np.flatnonzero(ours != theirs))
    wide, other_wide = ours.view(np.int64), theirs.view(np.int64)
    words = np.flatnonzero(wide != other_wide)  # several at a time: few differ
    within = np.flatnonzero((wide.take(words) ^ other_wide.take(words)).view(np.int16))
    return torch.from_numpy(words[within // WORD] * WORD + within % WORD)


def round_once(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast float64 to `dtype` with one rounding to nearest even.

    torch goes from float64 to 16 bits by way of float32, and a value that the first rounding puts half-way between two
    16-bit numbers may then fall on the wrong side (1 weight in 100,000). Those are nudged back towards the exact value.
    """
    if exact.dtype != torch.float64 or dtype.itemsize >= 4:
        return exact.to(dtype)
    single = exact.float()
    halfway = (single.view(torch.int32) & 0xFFF == 0).nonzero(as_tuple=True)  # all ties have these bits clear
    close, true = single[halfway], exact[halfway]
    towards = torch.where(true > close, torch.inf, torch.where(true < close, -torch.inf, close.double())).float()
    single[halfway] = torch.nextafter(close, towards)
    return single.to(dtype)
