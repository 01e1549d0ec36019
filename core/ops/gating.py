"""The gate of a decoder's MLP: act(e) u, SwiGLU for silu and GeGLU for gelu (Shazeer 2020).

e and u alone are kept; act(e) u is worked out again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from core.ops.kernels import kernels_for


@dataclass(frozen=True)
class Activation:
    """An elementwise function and its gradient, g act'(e)."""

    name: str
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def _silu_backward(gradient: Tensor, e: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward(gradient, e)  # type: ignore[no-any-return]


def _gelu(kind: str) -> Activation:
    return Activation(
        f"gelu_{kind}",
        lambda e: F.gelu(e, approximate=kind),
        lambda gradient, e: torch.ops.aten.gelu_backward(gradient, e, approximate=kind),
    )


SILU = Activation("silu", F.silu, _silu_backward)
GELU_TANH, GELU = _gelu("tanh"), _gelu("none")
ACTIVATIONS = {"silu": SILU, "swish": SILU, "gelu_pytorch_tanh": GELU_TANH, "gelu": GELU}  # by transformers' names


def gate_reference(e: Tensor, u: Tensor, activation: Activation) -> Tensor:
    """The definition: act(e) u, elementwise."""
    return activation.forward(e) * u


def gate_forward(e: Tensor, u: Tensor, activation: Activation) -> Tensor:
    """act(e) u for e and u (N, F), which may be halves of one tensor (N, 2 F)."""
    if (fast := kernels_for(e)) is not None and activation is not GELU:
        return fast.gate_forward(e, u, activation is SILU)
    return activation.forward(e).mul_(u)


def gate_backward(gradient: Tensor, e: Tensor, u: Tensor, activation: Activation) -> tuple[Tensor, Tensor, Tensor]:
    """(act(e) u, gradient of e, gradient of u) from the gradient of act(e) u, which is overwritten."""
    if (fast := kernels_for(e)) is not None and activation is not GELU:
        return fast.gate_backward(gradient, e, u, activation is SILU)
    activated = activation.forward(e)
    d_u = gradient * activated
    d_e = activation.backward(gradient.mul_(u), e)
    return activated.mul_(u), d_e, d_u
