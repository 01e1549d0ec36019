"""Linear layers with adapters, alone, with norm, residual and gate, against plain autograd in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from core.adapters import inject
from core.adapters.host import AdaptedModule
from core.config import AdapterConfig
from core.ops.adjacent import below_each_other, side_by_side
from core.ops.gated_mlp import GatedMLP, gated_mlp
from core.ops.gating import SILU
from core.ops.group import Group
from core.ops.lora_gate import joins
from core.ops.normed_linear import normed_linear, normed_linear_reference
from core.ops.output_linear import output_linear, output_linear_reference
from core.ops.recognition import read_projection
from core.ops.rms_norm import Norm
from core.ops.scaled_gate import scales
from core.ops.wide_product import PART, wide_product

WIDTH = 12
NORM = Norm(torch.linspace(0.5, 1.5, WIDTH, dtype=torch.float64), 1e-5)


def layers(method: str, *sizes: tuple[int, int], bias: bool = True, adapted: str = r"\d") -> Group:
    """A group of layers, adapted where the pattern says."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(*size, bias=bias).double() for size in sizes)).requires_grad_(False)
    inject(model, AdapterConfig(method=method, r=3, lora_alpha=6, target_modules=adapted), seed=1)
    for module in model.modules():
        if isinstance(module, AdaptedModule):
            for parameter in module.adapters.parameters():
                parameter.data += 0.3 * torch.randn_like(parameter)
    return Group(*(read_projection(module) for module in model))


def same(found: Sequence[Tensor], expected: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    trained = [leaf for leaf in leaves if leaf.requires_grad]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    weights = [torch.randn_like(each) for each in expected]
    gradients = [torch.autograd.grad(outputs, trained, weights) for outputs in (list(found), list(expected))]
    for one, other in zip(*gradients, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def rows(*, trains: bool = True) -> Tensor:
    torch.manual_seed(4)
    return torch.randn(2, 5, WIDTH, dtype=torch.float64, requires_grad=trains)


@pytest.mark.parametrize("method", ["lora", "dora", "lora_fa"])
@pytest.mark.parametrize("norm", [None, NORM], ids=["bare", "normed"])
@pytest.mark.parametrize("adapted", [r"\d", "[02]", "1"])
@pytest.mark.parametrize("trains", [True, False])
def test_layers_of_one_input(method: str, norm: Norm | None, adapted: str, trains: bool) -> None:
    group, x = layers(method, (WIDTH, 8), (WIDTH, 4), (WIDTH, 4), adapted=adapted), rows(trains=trains)
    found, expected = normed_linear(x, norm, group), normed_linear_reference(x, norm, group)
    if not trains:  # an output that nothing trained leads to has no gradient to compare
        kept = [index for index, each in enumerate(group.projections) if each.adapter is not None]
        found, expected = [found[index] for index in kept], [expected[index] for index in kept]
    same(found, expected, [x, *group.parameters])


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("post", [None, NORM], ids=["bare", "normed"])
def test_a_layer_that_ends_a_branch(method: str, post: Norm | None) -> None:
    group, residual = layers(method, (8, WIDTH)), rows()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    found, expected = (form(x, residual, group, post) for form in (output_linear, output_linear_reference))
    same([found], [expected], [x, residual, *group.parameters])


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("post", [None, NORM], ids=["bare", "normed"])
@pytest.mark.parametrize("sizes", [[(WIDTH, 20), (WIDTH, 20)], [(WIDTH, 40)]], ids=["apart", "together"])
def test_a_whole_mlp(method: str, post: Norm | None, sizes: list[tuple[int, int]]) -> None:
    mlp = GatedMLP(NORM, layers(method, *sizes), layers(method, (20, WIDTH)), SILU, post)
    x = rows()
    same([gated_mlp(x, mlp)], [mlp.reference(x)], [x, *mlp.live_parameters()])


@pytest.mark.parametrize("method", ["lora", "lora_fa"])
@pytest.mark.parametrize("post", [None, NORM], ids=["bare", "normed"])
@pytest.mark.parametrize("keeps_inner", [True, False])
def test_an_mlp_whose_gate_takes_the_small_products_over(
    method: str, post: Norm | None, keeps_inner: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA devices, here with the plain form of what the kernels compute."""
    inner, outer = layers(method, (WIDTH, 20), (WIDTH, 20), bias=False), layers(method, (20, WIDTH))
    mlp = GatedMLP(NORM, inner, outer, SILU, post)
    assert not joins(inner, outer, SILU, rows())
    monkeypatch.setattr("core.ops.gated_mlp.joins", lambda *_: True)
    x = rows()
    same([gated_mlp(x, mlp, keeps_inner)], [mlp.reference(x)], [x, *mlp.live_parameters()])


@pytest.mark.parametrize("keeps_inner", [True, False])
def test_an_mlp_whose_gate_takes_the_gains_over(monkeypatch: pytest.MonkeyPatch, keeps_inner: bool) -> None:
    """As on CUDA devices, here with the plain form of what the kernels compute."""
    inner, outer = layers("dora", (WIDTH, 20), (WIDTH, 20), bias=False), layers("dora", (20, WIDTH))
    mlp = GatedMLP(NORM, inner, outer, SILU)
    assert not scales(inner, SILU, rows())
    monkeypatch.setattr("core.ops.gated_mlp.scales", lambda *_: True)
    x = rows()
    same([gated_mlp(x, mlp, keeps_inner)], [mlp.reference(x)], [x, *mlp.live_parameters()])


def test_products_of_stacked_weights_are_one_product() -> None:
    """As q, k and v lie on CUDA devices, where their gradients come side by side."""
    group = layers("lora", (WIDTH, 8), (WIDTH, 4), (WIDTH, 4))
    weights = [each.base.weight.clone() for each in group.projections]
    apart = group.stacked(torch.float64)
    group.stack()
    assert apart is None and torch.equal(group.stacked(torch.float64), torch.cat(weights))
    assert all(torch.equal(each.base.weight, own) for each, own in zip(group.projections, weights, strict=True))
    _, kept = group.forward(rows(trains=False).view(-1, WIDTH))
    gradients = torch.split(torch.randn(10, 16, dtype=torch.float64), [8, 4, 4], dim=1)
    wants = [True] * len(group.parameters)
    together, each_alone = (
        group.backward(kept, form, group.parameters, wants).of_input()
        for form in (gradients, [gradient.clone() for gradient in gradients])
    )
    torch.testing.assert_close(together, each_alone, rtol=1e-12, atol=1e-12)


def test_what_lies_side_by_side_is_seen() -> None:
    whole = torch.arange(24.0).view(4, 6)
    assert torch.equal(side_by_side(torch.split(whole, [1, 3, 2], dim=1)), whole)
    assert torch.equal(side_by_side([whole[:, 1:3], whole[:, 3:5]]), whole[:, 1:5])
    assert side_by_side([whole[:, 3:], whole[:, :3]]) is None and side_by_side([whole, whole.clone()]) is None
    assert side_by_side([whole, whole]) is None and side_by_side(torch.split(whole.T, 2, dim=1)) is None
    assert torch.equal(below_each_other(torch.split(whole, [1, 3])), whole)
    assert below_each_other([whole[2:], whole[:2]]) is None and below_each_other([whole[:1], whole[2:]]) is None
    assert below_each_other(torch.split(whole, 3, dim=1)) is None


@pytest.mark.parametrize("form", [normed_linear, normed_linear_reference])
def test_gradients_sum_over_calls(form: Callable[..., Sequence[Tensor]]) -> None:
    """The same layers twice in one graph, as with shared weights."""
    group, x = layers("lora", (WIDTH, WIDTH)), rows()
    (once,) = form(x, None, group)
    (twice,) = form(once, None, group)
    found = torch.autograd.grad(twice.sum(), [x, *group.parameters])
    plain = normed_linear_reference(normed_linear_reference(x, None, group)[0], None, group)[0]
    for one, other in zip(found, torch.autograd.grad(plain.sum(), [x, *group.parameters]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [1, PART, 2 * PART, 2 * PART + 1, 9 * PART + 17])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_sums_over_rows_in_parts(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    one, other = torch.randn(rows, 5).to(dtype), torch.randn(rows, 40).to(dtype)
    exact = one.double().T @ other.double()
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    found = wide_product(one.T, other, wanted)
    error = (found.double() - exact).norm() / exact.norm()
    assert found.dtype == wanted and error < (1e-14 if wanted == torch.float64 else 2e-7)
