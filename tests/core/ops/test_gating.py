"""The gate of an MLP against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from core.ops.gating import ACTIVATIONS, gate_backward, gate_forward, gate_reference


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_equals_its_definition(name: str) -> None:
    activation = ACTIVATIONS[name]
    both = torch.randn(6, 20, dtype=torch.float64)
    e, u = (half.detach().requires_grad_() for half in both.chunk(2, dim=-1))
    g = torch.randn(6, 10, dtype=torch.float64)
    expected = gate_reference(e, u, activation)
    torch.testing.assert_close(expected, ACT2FN[name](e) * u)
    wanted = torch.autograd.grad(expected, (e, u), g)
    with torch.no_grad():
        torch.testing.assert_close(gate_forward(*both.chunk(2, dim=-1), activation), expected)
        gated, *found = gate_backward(g.clone(), *both.chunk(2, dim=-1), activation)
    for one, other in zip([gated, *found], [expected, *wanted], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
