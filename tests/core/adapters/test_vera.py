"""VeRA: one shared pair, the formula, the start, and counts of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.adapters import adapter_parameters, adapter_state_dict, inject
from core.adapters.inject import adapters_of
from core.config import AdapterConfig
from core.errors import ConfigError
from core.export.peft import load_adapter, save_adapter
from core.methods import methods
from tests.core.adapters.tiny import llama, logits, shake, tokens


@pytest.mark.parametrize("count", [7, 3])  # more rows than the rank, and fewer: the vectors scale B, or the rows
def test_formula_gradients_and_shares(count: int) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4)).double()
    inject(model, AdapterConfig(method="vera", r=5, target_modules=("0", "1")), seed=1)
    shake(model, size=0.5)
    first, second = _vectors(model)
    pair = first.projections
    assert pair is second.projections and pair.a.shape == (5, 9) and pair.b.shape == (9, 5)
    x = torch.randn(count, 6, dtype=torch.float64)
    model(x).square().sum().backward()
    copies = [
        (adapter.lambda_b.detach().clone().requires_grad_(), adapter.lambda_d.detach().clone().requires_grad_())
        for adapter in (first, second)
    ]
    h = x
    for layer, (b, d) in zip(model, copies, strict=True):
        base: Any = layer.base_layer
        d_in, d_out = base.in_features, base.out_features
        h = base(h) + ((h @ pair.a.double()[:, :d_in].T * d) @ pair.b.double()[:d_out].T) * b
    torch.testing.assert_close(model(x), h, atol=1e-12, rtol=0)
    h.square().sum().backward()
    for own, (b, d) in zip((first, second), copies, strict=True):
        torch.testing.assert_close(own.lambda_b.grad, b.grad, atol=1e-10, rtol=0)
        torch.testing.assert_close(own.lambda_d.grad, d.grad, atol=1e-10, rtol=0)


@pytest.mark.parametrize("count", [64, 8])
def test_in_16_bits_the_vectors_are_not_rounded(count: int) -> None:
    """Inputs, pair and products are bfloat16 numbers; the vectors are not, and a sum over them must not lose that."""
    torch.manual_seed(1)
    x, slopes = torch.randn(2, count, 32).bfloat16()
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        model = nn.Sequential(nn.Linear(32, 32)).to(dtype)
        inject(model, AdapterConfig(method="vera", r=16, target_modules=("0",)), seed=1)
        shake(model, size=0.5)
        (adapter,) = _vectors(model)
        if dtype == torch.float64:
            adapter.projections.a.copy_(adapter.projections.a.bfloat16())
            adapter.projections.b.copy_(adapter.projections.b.bfloat16())
        model(x.to(dtype)).backward(slopes.to(dtype))
        assert adapter.lambda_b.grad.dtype == adapter.lambda_b.dtype
        found.append((adapter.lambda_b.grad.double(), adapter.lambda_d.grad.double()))
    for rounded, exact in zip(*found, strict=True):
        assert float((rounded - exact).norm() / exact.norm()) < 0.004


def _vectors(model: Any) -> list[Any]:
    return [host.adapter("default") for host in adapters_of(model).hosts.values()]


def test_branch_has_a_size_that_does_not_depend_on_the_rank() -> None:
    """With b = 1 its spread is 2 d_initial, which is why VeRA needs no alpha."""
    x = torch.randn(2000, 256, dtype=torch.float64)
    for r in (16, 64, 256):
        model = nn.Sequential(nn.Linear(256, 256)).double()
        inject(model, AdapterConfig(method="vera", r=r, target_modules=("0",)), seed=1)
        host: Any = model[0]
        with torch.no_grad():
            host.adapter("default").lambda_b.fill_(1.0)
        branch = (model(x) - host.base_layer(x)).detach()
        assert branch.std().item() == pytest.approx(0.2, rel=0.15)


def test_pair_is_saved_once_or_left_to_its_seed(tmp_path: Path) -> None:
    states = []
    for saved in (True, False):
        model = llama()
        options = {"save_projection": saved, "projection_prng_key": 7}
        inject(model, AdapterConfig(method="vera", r=4, method_options=options), seed=1)
        shake(model)
        folder = save_adapter(model, tmp_path / str(saved))
        loaded = llama()
        load_adapter(loaded, folder)
        assert torch.equal(logits(loaded, tokens()), logits(model, tokens()))
        states.append(adapter_state_dict(model))
    assert set(states[0]) - set(states[1]) == {"base_model.vera_A", "base_model.vera_B"}
    assert len(states[1]) == 2 * 14


def test_the_pair_is_frozen_and_has_no_decay() -> None:
    model = llama()
    inject(model, AdapterConfig(method="vera", r=4), seed=1)
    assert all(parameter.ndim == 1 for parameter in adapter_parameters(model))
    assert not any("vera_A" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("layers", "width", "r", "count"),
    [
        (24, 768, 1, 18_456), (24, 768, 16, 18_816), (24, 768, 256, 24_576), (24, 768, 1024, 43_008),
        (48, 1024, 1, 49_200), (48, 1024, 16, 49_920), (48, 1024, 256, 61_440), (192, 12_288, 16, 2_362_368),
    ],
)  # fmt: skip
def test_counts_of_the_paper(layers: int, width: int, r: int, count: int) -> None:
    """RoBERTa-base and -large, and GPT-3, with queries and values adapted: L (d + r)."""
    config = AdapterConfig(method="vera", r=r)
    assert layers * methods.get("vera").layer_parameters(config, r, width, width) == count


def test_settings_without_a_meaning_are_refused() -> None:
    with pytest.raises(ConfigError, match="set the strength by themselves"):
        AdapterConfig(method="vera", lora_alpha=64.0)
    with pytest.raises(ConfigError, match="one pair"):
        AdapterConfig(method="vera", rank_pattern={"q_proj": 2})
