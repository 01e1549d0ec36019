"""DoRA: the formula with the dense norm, the detached gradient, merging by rows, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from core.adapters import inject, merge, set_adapter, unmerge
from core.adapters.inject import adapters_of
from core.config import AdapterConfig, OptimConfig
from core.errors import AdapterError
from core.methods import methods
from core.optim import parameter_groups
from tests.core.adapters.tiny import gpt2, llama, logits, shake, tokens

BASES = {"linear": lambda: nn.Linear(12, 10), "conv1d": lambda: Conv1D(10, 12)}


def layer(kind: str, dropout: float = 0.0) -> tuple[Any, Any]:
    torch.manual_seed(2)
    model = nn.Sequential(BASES[kind]()).double()
    with torch.no_grad():
        model[0].bias.normal_()
    config = AdapterConfig(method="dora", r=3, lora_alpha=6.0, lora_dropout=dropout, target_modules=("0",))
    inject(model, config, seed=1)
    return model, model[0].adapter("default")


@pytest.mark.parametrize("kind", BASES)
def test_starts_exactly_and_m_is_the_length_of_each_output(kind: str) -> None:
    model, adapter = layer(kind)
    x = torch.randn(4, 12, dtype=torch.float64)
    assert torch.equal(model(x), model[0].base_layer(x))
    weight = model[0].base_layer.weight.T if kind == "conv1d" else model[0].base_layer.weight
    torch.testing.assert_close(adapter.magnitude.detach(), weight.norm(dim=1).detach(), atol=1e-12, rtol=0)


def test_the_articles_example() -> None:
    """The vector (1, 1) has length sqrt 2 and stands at 45 degrees."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    nn.init.ones_(model[0].weight)  # type: ignore[arg-type]
    inject(model, AdapterConfig(method="dora", r=1, target_modules=("0",)))
    host: Any = model[0]
    assert host.adapter("default").magnitude.item() == pytest.approx(2**0.5)


@pytest.mark.parametrize("kind", BASES)
def test_output_and_gradients_of_the_dense_formula_with_a_constant_norm(kind: str) -> None:
    model, adapter = layer(kind)
    shake(model, size=0.4)
    x = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
    model(x).square().sum().backward()
    base = model[0].base_layer
    weight = (base.weight.T if kind == "conv1d" else base.weight).detach()
    a, b, m = (
        part.detach().clone().requires_grad_(True) for part in (adapter.lora_A, adapter.lora_B, adapter.magnitude)
    )
    z = x.detach().clone().requires_grad_(True)
    v = weight + 2.0 * b @ a
    out = z @ (m[:, None] * v / v.norm(dim=1, keepdim=True).detach()).T + base.bias
    torch.testing.assert_close(model(x), out, atol=1e-12, rtol=0)
    out.square().sum().backward()
    for own, other in ((adapter.lora_A, a), (adapter.lora_B, b), (adapter.magnitude, m), (x, z)):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", BASES)
def test_dropout_is_on_the_turned_part_only(kind: str) -> None:
    model, adapter = layer(kind, dropout=0.5)
    shake(model, size=0.4)
    x = torch.randn(6, 12, dtype=torch.float64)
    base = model[0].base_layer
    weight = (base.weight.T if kind == "conv1d" else base.weight).detach()
    torch.manual_seed(11)
    found = model.train()(x)
    torch.manual_seed(11)
    dropped = nn.functional.dropout(x, 0.5)
    v = weight + 2.0 * adapter.lora_B @ adapter.lora_A
    gain = adapter.magnitude / v.norm(dim=1)
    expected = (
        base(x) + (gain - 1) * (dropped @ weight.T) + gain * 2.0 * (dropped @ adapter.lora_A.T @ adapter.lora_B.T)
    )
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_merged_rows_have_the_trained_length(make: Any) -> None:
    model = make().double()
    inject(model, AdapterConfig(method="dora", r=2), seed=1)
    shake(model, size=0.2)
    expected = logits(model, tokens())
    merge(model)
    torch.testing.assert_close(logits(model, tokens()), expected, atol=1e-11, rtol=0)
    for host in adapters_of(model).hosts.values():
        axis = 0 if isinstance(host.base_layer, Conv1D) else 1
        lengths = host.base_layer.get_parameter("weight").norm(dim=axis)
        adapter: Any = host.adapter("default")
        torch.testing.assert_close(lengths, adapter.magnitude.abs().detach(), atol=1e-12, rtol=0)
    unmerge(model)
    assert torch.equal(logits(model, tokens()), expected)


def test_counts_and_no_decay_on_lengths() -> None:
    model = llama()
    config = AdapterConfig(method="dora", r=2, target_modules=("q_proj",))
    inject(model, config, seed=1)
    assert methods.get("dora").layer_parameters(config, 2, 16, 16) == 2 * 32 + 16
    groups = parameter_groups(model, OptimConfig(weight_decay=0.1))
    assert {p.ndim for p in groups[0]["params"]} == {2} and groups[0]["weight_decay"] == 0.1
    assert {p.ndim for p in groups[1]["params"]} == {1} and groups[1]["weight_decay"] == 0.0


def test_norms_follow_a_base_that_is_loaded_anew() -> None:
    model, adapter = layer("linear")
    shake(model, size=0.4)
    x = torch.randn(2, 12, dtype=torch.float64)
    model(x)
    with torch.no_grad():
        model[0].base_layer.weight.mul_(3)
    v = model[0].base_layer.weight + adapter.delta_weight()
    expected = x @ (adapter.magnitude[:, None] * v / v.norm(dim=1, keepdim=True)).T + model[0].base_layer.bias
    torch.testing.assert_close(model(x), expected, atol=1e-12, rtol=0)


def test_works_alone_on_a_layer() -> None:
    model = llama()
    inject(model, AdapterConfig(method="dora", r=2, target_modules=("q_proj",)), name="turned")
    inject(model, AdapterConfig(r=2, target_modules=("q_proj",)), name="plain")
    inject(model, AdapterConfig(r=2, target_modules=("v_proj",)), name="elsewhere")
    set_adapter(model, ["turned", "elsewhere"])
    with pytest.raises(AdapterError, match="by itself"):
        set_adapter(model, ["turned", "plain"])
