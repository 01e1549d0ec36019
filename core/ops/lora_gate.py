"""The gate of an MLP together with the small products of the LoRA layers around it: gate and up before it, down behind.

gated = act(e + S_e B_e^T) * (u + S_u B_u^T), and S = gated (s A)^T for the layer behind. e and u (N, F) are by far the
widest tensors of a step, and every small product by itself would read or write one of them once more: the Triton
kernels do all of them in the pass that the gate takes anyway. So e and u are kept without their small products.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from core.ops.gating import GELU, SILU, Activation, gate_backward, gate_forward
from core.ops.group import Group, Kept
from core.ops.kernels import ALIGNED, HALVES, is_hopper, kernels_for

logger = logging.getLogger(__name__)

WIDEST_RANK = 32  # whose sums the kernels hold in registers


@dataclass(frozen=True)
class Around:
    """The factors of the three small products."""

    small_e: Tensor  # S (N, r) of the gate's layer
    small_u: Tensor  # S (N, r) of up's
    b_e: Tensor  # B (F, r)
    b_u: Tensor
    a: Tensor  # s A (r, F) of the layer behind
    scale: float  # that s


def around_of(inner: Kept, outer: Sequence[Tensor], scale: float) -> Around:
    """From what gate and up keep, and the factors and the s of the layer behind."""
    (small_e, small_u), (_, b_e, b_u), (a, *_) = inner.smalls, inner.factors, outer
    return Around(small_e, small_u, b_e, b_u, a, scale)


def joins(inner: Group, outer: Group, activation: Activation, h: Tensor) -> bool:
    """Whether the kernels can take the small products over: three plain LoRA layers, nothing dropped, no biases."""
    groups = inner, outer
    return (
        kernels_for(h) is not None
        and h.dtype in HALVES
        and activation is not GELU
        and [len(group.projections) for group in groups] == [len(group.adapted) for group in groups] == [2, 1]
        and not any(group.dropping or group.scaled for group in groups)
        and all(each.bias is None for each in inner.projections)
        and max(rank for group in groups for rank in group.ranks) <= WIDEST_RANK
        and outer.width % ALIGNED == 0
        and _runs_on(h.device)
    )


@cache
def _runs_on(device: torch.device) -> bool:
    """Whether the kernels, which were made on a Hopper GPU, run on a device: tried once on one that is older."""
    if is_hopper(device):
        return True
    x, small, b, a = (
        torch.zeros(size, dtype=torch.float16, device=device) for size in ((16, 64), (16, 16), (64, 16), (16, 64))
    )
    around = Around(small, small, b, b, a, 1.0)
    try:
        lora_gate_forward(x, x, around, SILU)
        lora_gate_backward(x.clone(), x.clone(), x, x, around, small, SILU)
    except Exception:  # a compiler's errors have no other ancestor in common
        logger.warning("The gate's kernels do not run here, so that steps take somewhat longer.", exc_info=True)
        return False
    return True


def lora_gate_forward(e: Tensor, u: Tensor, around: Around, activation: Activation) -> tuple[Tensor, Tensor]:
    """(gated (N, F), S (N, r) of the layer behind) of e and u (N, F) without their small products."""
    if (fast := kernels_for(e)) is not None:
        return fast.lora_gate_forward(e, u, around, activation.name == "silu")
    whole_e, whole_u = _whole(e, u, around)
    gated = gate_forward(whole_e, whole_u, activation)
    return gated, gated @ around.a.T


def lora_gate_backward(
    d_e: Tensor, d_u: Tensor, e: Tensor, u: Tensor, around: Around, d_small: Tensor, activation: Activation
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of A (r, F) and of both B (F, r); those of e and u (N, F) are written to `d_e` and `d_u`.

    In `d_e` comes the gradient of gated without the share through S, whose own gradient is `d_small` (N, r).
    """
    if (fast := kernels_for(e)) is not None:
        return fast.lora_gate_backward(d_e, d_u, e, u, around, d_small, activation.name == "silu")
    whole_e, whole_u = _whole(e, u, around)
    gated, of_e, of_u = gate_backward(torch.addmm(d_e, d_small, around.a), whole_e, whole_u, activation)
    d_e.copy_(of_e)
    d_u.copy_(of_u)
    return around.scale * (d_small.T @ gated), of_e.T @ around.small_e, of_u.T @ around.small_u


def _whole(e: Tensor, u: Tensor, around: Around) -> tuple[Tensor, Tensor]:
    return torch.addmm(e, around.small_e, around.b_e.T), torch.addmm(u, around.small_u, around.b_u.T)
