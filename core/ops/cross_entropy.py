"""Cross entropy of single targets, whose gradient takes the place of the logits: nothing else of their size is made."""

from __future__ import annotations

import torch
from torch import Tensor

from core.ops.kernels import kernels_for

ROWS = 16  # of a large vocabulary that stay in a CPU core's cache in float32 while the passes go over them


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] of every row of (N, V), as (N); 0, without a gradient, for a negative target.

    The logits, which must lie row behind row, become their own gradients. It is computed in float32 or better.
    """
    if (fast := kernels_for(logits)) is not None:
        return fast.cross_entropy(logits, targets)
    if logits.dtype in (torch.float32, torch.float64):
        return _in_place(logits, targets)
    rows = ROWS if logits.device.type == "cpu" else len(logits)
    losses = []
    for part, own in zip(torch.split(logits, rows), torch.split(targets, rows), strict=True):
        wide = part.float()
        losses.append(_in_place(wide, own))
        part.copy_(wide)
    return torch.cat(losses)


def _in_place(logits: Tensor, targets: Tensor) -> Tensor:
    counts, places = (targets >= 0).to(logits.dtype)[:, None], targets.clamp_min(0)[:, None]
    own, largest = logits.gather(1, places), logits.amax(1, keepdim=True)
    sums = logits.sub_(largest).exp_().sum(1, keepdim=True)
    logits.mul_(counts / sums).scatter_add_(1, places, -counts)
    return (counts * (sums.log() + largest - own)).squeeze(1)
