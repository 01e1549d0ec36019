"""What S and B of layers with one input get: dS = dy B and dB = dy^T S, all of it in one pass over dy.

By themselves these are two thin products a layer. Each reads dy, and takes longer to begin than to compute.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.ops.adjacent import below_each_other, side_by_side
from core.ops.kernels import ALIGNED, HALVES, is_hopper, kernels_for

MOST_LAYERS = 3  # q, k and v
WIDEST_RANK = 32  # whose sums the kernel holds in registers


def small_gradients(
    gradients: Sequence[Tensor], factors: Sequence[Tensor], smalls: Sequence[Tensor], wants_b: bool = True
) -> tuple[Tensor, list[Tensor]] | None:
    """(dS (N, sum of r) of all layers side by side, dB (out, r) of each in float32) of their dy (N, out), B and S.

    Without `wants_b` there is no dB. None where there is no kernel for it: off a GPU, and where dy, B or S do not lie
    next to each other.
    """
    fast, rank = kernels_for(gradients[0]), factors[0].shape[1]
    if fast is None or gradients[0].dtype not in HALVES or not is_hopper(gradients[0].device):
        return None
    if len(factors) > MOST_LAYERS or rank > WIDEST_RANK:
        return None
    whole, factor, small = side_by_side(gradients), below_each_other(factors), side_by_side(smalls)
    if whole is None or factor is None or small is None:
        return None
    if any(number % ALIGNED for number in (whole.stride(0), whole.storage_offset())):
        return None
    widths = [each.shape[1] for each in gradients]
    d_small, d_factor = fast.small_gradients(whole, factor, small, widths, wants_b)
    return d_small, [] if d_factor is None else list(torch.split(d_factor, widths))
