"""The gate with the gains of two DoRA layers before it, against autograd in float64."""

from __future__ import annotations

import pytest
import torch

from core.ops.gating import ACTIVATIONS, gate_reference
from core.ops.scaled_gate import scaled_gate_backward, scaled_gate_forward


@pytest.mark.parametrize("name", ["silu", "gelu_pytorch_tanh", "gelu"])
def test_equals_autograd(name: str) -> None:
    activation = ACTIVATIONS[name]
    products = [torch.randn(7, 12, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    gains = [torch.rand(12, dtype=torch.float64).add_(0.5).requires_grad_() for _ in range(2)]
    expected = gate_reference(*(p * m for p, m in zip(products, gains, strict=True)), activation)
    g = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [*products, *gains], g)
    given = [p.detach() for p in products], [m.detach() for m in gains]
    torch.testing.assert_close(scaled_gate_forward(*given, activation), expected)
    gated, *found = scaled_gate_backward(g.clone(), *given, activation)
    torch.testing.assert_close(gated, expected)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
