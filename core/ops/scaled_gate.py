"""The gate of an MLP together with the gains of two DoRA layers before it: act(m_e p_e) (m_u p_u) of their products p.

As in `core.ops.lora_gate`, e and u are by far the widest tensors of a step: the kernels scale them in the pass that the
gate takes anyway, and backward sum up what the gains get in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from core.ops.gating import GELU, Activation, gate_backward, gate_forward
from core.ops.group import Group
from core.ops.kernels import kernels_for
from core.ops.scaling import scale_back

Gains = Sequence[Tensor]  # m over the length of W + s B A (F), of gate and up


def scales(inner: Group, activation: Activation, h: Tensor) -> bool:
    """Whether the kernels can take the gains over: two DoRA layers without biases."""
    layers = inner.projections
    return (
        kernels_for(h) is not None
        and activation is not GELU
        and len(layers) == len(inner.scaled) == 2
        and all(each.bias is None for each in layers)
    )


def scaled_gate_forward(products: Sequence[Tensor], gains: Gains, activation: Activation) -> Tensor:
    """gated (N, F) of the products (N, F) of gate and up."""
    (e, u), (gain_e, gain_u) = products, gains
    if (fast := kernels_for(e)) is not None:
        return fast.scaled_gate_forward(e, u, gain_e, gain_u, activation.name == "silu")
    return gate_forward((e * gain_e).to(e.dtype), (u * gain_u).to(u.dtype), activation)


def scaled_gate_backward(
    gradient: Tensor, products: Sequence[Tensor], gains: Gains, activation: Activation
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """gated and the gradients of both products (N, F), and the sums (F) that `scaling.scale_back` gives of both.

    `gradient` (N, F), which is overwritten, is that of gated.
    """
    (e, u), (gain_e, gain_u) = products, gains
    if (fast := kernels_for(e)) is not None:
        return fast.scaled_gate_backward(gradient, e, u, gain_e, gain_u, activation.name == "silu")
    whole_e, whole_u = (e * gain_e).to(e.dtype), (u * gain_u).to(u.dtype)
    gated, d_e, d_u = gate_backward(gradient, whole_e, whole_u, activation)
    d_e, sum_e = scale_back(d_e, e, gain_e)
    d_u, sum_u = scale_back(d_u, u, gain_u)
    return gated, d_e, d_u, sum_e, sum_u
