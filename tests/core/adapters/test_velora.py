"""VeLoRA: exact but for the gradient of A, which gets better with more groups, and little that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.adapters import inject
from core.checkpoint import load_checkpoint, save_checkpoint
from core.config import AdapterConfig
from core.errors import ConfigError
from tests.core.adapters.test_lora_fa import kept_bytes
from tests.core.adapters.tiny import shake
from tests.core.toy import toy_config, toy_trainer


def layer(method: str = "velora", **options: Any) -> Any:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(32, 24)).double()
    config = AdapterConfig(method=method, r=4, target_modules=("0",), method_options=options)
    inject(model, config, seed=1)
    shake(model, size=0.3)
    return model.train()


def gradients(model: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dA, dB and dx of a quadratic loss."""
    x = x.clone().requires_grad_(True)
    model(x).square().sum().backward()
    adapter = model[0].adapter("default")
    assert x.grad is not None
    return adapter.lora_A.grad, adapter.lora_B.grad, x.grad


X = torch.randn(2, 20, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.5


def test_everything_but_the_gradient_of_a_is_exact() -> None:
    model, plain = layer(groups=4), layer("lora")
    torch.testing.assert_close(model(X), plain(X), atol=1e-12, rtol=0)
    assert torch.equal(model.eval()(X), plain.eval()(X))
    (_, d_b, d_x), (_, plain_b, plain_x) = gradients(layer(groups=4), X), gradients(layer("lora"), X)
    torch.testing.assert_close(d_b, plain_b, atol=1e-10, rtol=0)
    torch.testing.assert_close(d_x, plain_x, atol=1e-10, rtol=0)


def test_one_number_a_group_is_the_exact_gradient() -> None:
    found, expected = gradients(layer(groups=32), X)[0], gradients(layer("lora"), X)[0]
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_gradient_of_a_is_that_of_the_rebuilt_input_and_gets_better_with_groups() -> None:
    exact = gradients(layer("lora"), X)[0]
    angles = []
    for groups in (1, 4, 16, 32):
        model = layer(groups=groups)
        d_a = gradients(model, X)[0]
        adapter = model[0].adapter("default")
        v = adapter.direction
        assert v.norm().item() == pytest.approx(1.0)
        parts = X.reshape(40, groups, -1)
        rebuilt = ((parts @ v)[..., None] * v).reshape(40, 32)
        flat = X.reshape(40, 32)
        out = flat @ (model[0].base_layer.weight + adapter.delta_weight()).T + model[0].base_layer.bias
        upstream = 2 * out.detach() @ adapter.lora_B.detach() * adapter.scale  # gradient at A x
        torch.testing.assert_close(d_a, upstream.T @ rebuilt, atol=1e-9, rtol=0)
        angles.append(F.cosine_similarity(d_a.flatten(), exact.flatten(), dim=0).item())
    assert angles == sorted(angles) and angles[-1] == pytest.approx(1.0)


def test_a_number_a_group_is_kept() -> None:
    """512 inputs in 32 groups: 32 and 8 numbers a token instead of 512 and 8."""
    small = kept_bytes("velora", method_options={"groups": 32})
    assert small <= 256 * (32 + 8) * 4 + 512 * 4 < kept_bytes("lora") / 10


def test_direction_comes_from_the_first_batch_and_not_from_measuring() -> None:
    model = layer(groups=8)
    adapter = model[0].adapter("default")
    model.eval()(X)
    assert not adapter.direction.any()
    model.train()(X)
    first = adapter.direction.clone()
    expected = F.normalize(X.reshape(-1, 4).mean(0), dim=0)
    torch.testing.assert_close(first, expected, atol=1e-12, rtol=0)
    model(X * torch.linspace(-1, 2, 32))
    assert torch.equal(adapter.direction, first)
    every = layer(groups=8, direction="every_batch")
    every(X)
    every(-X)
    torch.testing.assert_close(every[0].adapter("default").direction, -expected, atol=1e-12, rtol=0)
    assert layer(groups=8, direction="random")[0].adapter("default").direction.norm().item() == pytest.approx(1.0)


def test_resumed_run_equals_the_unbroken_one(tmp_path: Path) -> None:
    config = toy_config(adapter=AdapterConfig(method="velora", r=2, method_options={"groups": 8}), max_steps=6)
    whole, first, second = toy_trainer(config), toy_trainer(config), toy_trainer(config)
    losses = [metrics.loss for metrics in whole.steps()]
    for metrics in first.steps():
        if metrics.step == 3:
            break
    save_checkpoint(first, tmp_path)
    load_checkpoint(second, tmp_path / "step-000003")
    assert [metrics.loss for metrics in second.steps()] == losses[3:]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="undo the memory saved"):
        AdapterConfig(method="velora", lora_dropout=0.1)
    with pytest.raises(ConfigError, match="do not divide"):
        layer(groups=5)
