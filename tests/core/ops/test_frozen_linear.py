"""A frozen layer on its own products: torch's numbers and gradients, and torch itself wherever more is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from core.ops import frozen_linear as module
from core.ops import product as products
from core.ops.frozen_linear import frozen_linear, runs_sooner
from core.ops.product import FEWEST_ROWS


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> nn.Linear:
    if not products._is_right():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    torch.manual_seed(0)
    return nn.Linear(200, 70).requires_grad_(False)


@pytest.mark.parametrize("has_bias", [True, False])
def test_output_and_gradient_are_those_of_torch(layer: Any, has_bias: bool) -> None:
    if not has_bias:
        layer.bias = None
    x = torch.randn(3, 50, 200, requires_grad=True)
    assert runs_sooner(layer, (x,), {})
    found, wanted = frozen_linear(x, layer), layer(x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(wanted)
    for one, other in zip(torch.autograd.grad(found, x, weights), torch.autograd.grad(wanted, x, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_what_it_leaves_to_the_layer(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(FEWEST_ROWS, 200)
    assert runs_sooner(layer, (x,), {})
    assert not runs_sooner(layer, (x[:-1],), {}), "too few rows"
    assert not runs_sooner(layer, (x.double(),), {}) and not runs_sooner(layer, (), {"input": x})
    assert not runs_sooner(nn.Sequential(layer), (x,), {})
    with torch.autocast("cpu", torch.bfloat16):
        assert not runs_sooner(layer, (x,), {})
    handle = layer.register_forward_hook(lambda *_: None)
    assert not runs_sooner(layer, (x,), {})
    handle.remove()
    layer.weight.requires_grad_(True)
    assert not runs_sooner(layer, (x,), {})
    layer.weight.requires_grad_(False)
    monkeypatch.setattr(module, "takes_onednn", lambda _: False)
    assert not runs_sooner(layer, (x,), {})
