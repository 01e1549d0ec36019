"""Products with trained factors: autograd's in float64, and gradients that 16 bits have not rounded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.ops.factor_product import add_product, factor_linear


def leaves(dtype: torch.dtype) -> tuple[Tensor, nn.Parameter, nn.Parameter, Tensor]:
    torch.manual_seed(0)
    x, out = torch.randn(2, 150, 24, dtype=dtype), torch.randn(2, 150, 9, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    a, b = nn.Parameter(torch.randn(4, 24, dtype=wide)), nn.Parameter(torch.randn(9, 4, dtype=wide))
    return x.requires_grad_(), a, b, out.requires_grad_()


def test_gradients_equal_autograd() -> None:
    x, a, b, out = leaves(torch.float64)
    found = add_product(out, factor_linear(x, a), b, 0.7)
    wanted = out + 0.7 * F.linear(F.linear(x, a), b)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(wanted)
    pairs = (torch.autograd.grad(each, [x, a, b, out], weights) for each in (found, wanted))
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_a_layer_gave_may_be_added_to_in_place() -> None:
    """As the parallel branches of a Falcon do."""
    x, a, b, out = leaves(torch.float64)
    found = add_product(out, factor_linear(x, a), b, 0.7)
    found += x.sum()
    (d_b,) = torch.autograd.grad(found.sum(), b)
    assert d_b.abs().max() > 0


def test_nothing_flows_where_nothing_trains() -> None:
    x, a, b, out = leaves(torch.float64)
    with torch.no_grad():
        assert not add_product(out, factor_linear(x, a), b, 0.7).requires_grad
    frozen = factor_linear(x, a.detach())
    assert torch.autograd.grad(frozen.sum(), x)[0].abs().max() > 0
    (d_b,) = torch.autograd.grad(add_product(out.detach(), frozen.detach(), b, 0.7).sum(), b)
    assert d_b.abs().max() > 0


def test_gradients_are_not_rounded_to_16_bits() -> None:
    x, a, _, _ = leaves(torch.bfloat16)
    made = factor_linear(x, a)
    assert made.dtype == torch.bfloat16
    weights = torch.randn_like(made)
    (found,) = torch.autograd.grad(made, a, weights)
    (rounded,) = torch.autograd.grad(F.linear(x, a.to(x.dtype)), a, weights)
    exact = weights.double().flatten(0, 1).T @ x.double().flatten(0, 1)
    off, own = ((each.double() - exact).norm() / exact.norm() for each in (rounded, found))
    assert found.dtype == torch.float32 and own < 1e-6 < off, pytest.approx(float(off))
