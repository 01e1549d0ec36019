"""Sparse LoRA: what is exactly zero, ranks, counts, and that the literal sum is one LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.adapters import inject
from core.adapters.inject import adapters_of
from core.adapters.sparse_lora import open_gates
from core.checkpoint import load_checkpoint, save_checkpoint
from core.config import AdapterConfig
from core.errors import ConfigError
from core.methods import methods
from tests.core.adapters.tiny import llama, shake
from tests.core.toy import toy_config, toy_trainer


def layer(r: int = 2, d_in: int = 12, d_out: int = 8, **options: Any) -> tuple[Any, Any]:
    model = nn.Sequential(nn.Linear(d_in, d_out)).double()
    config = AdapterConfig(method="sparse_lora", r=r, lora_alpha=6.0, target_modules=("0",), method_options=options)
    inject(model, config, seed=1)
    shake(model, size=0.5)
    host: Any = model[0]
    return model, host.adapter("default")


def test_blocks_are_separate_loras_and_everything_else_is_zero() -> None:
    _, adapter = layer(blocks=4)
    delta = adapter.delta_weight()
    expected = torch.zeros(8, 12, dtype=torch.float64)
    for i in range(4):
        expected[2 * i : 2 * i + 2, 3 * i : 3 * i + 3] = 3.0 * adapter.lora_B[i] @ adapter.lora_A[i]
    assert torch.equal(delta == 0, expected == 0)
    torch.testing.assert_close(delta, expected.detach(), atol=1e-12, rtol=0)
    assert (delta != 0).double().mean() == 1 / 4 and torch.linalg.matrix_rank(delta) == 8  # of LoRA: 2


def test_gradients_of_blocks_are_those_of_the_dense_formula() -> None:
    model, adapter = layer(blocks=2)
    x = torch.randn(5, 12, dtype=torch.float64)
    model(x).square().sum().backward()
    a, b = (part.detach().clone().requires_grad_(True) for part in (adapter.lora_A, adapter.lora_B))
    dense = torch.block_diag(*[3.0 * b[i] @ a[i] for i in range(2)])
    (model[0].base_layer(x) + x @ dense.T).square().sum().backward()
    torch.testing.assert_close(adapter.lora_A.grad, a.grad, atol=1e-10, rtol=0)
    torch.testing.assert_close(adapter.lora_B.grad, b.grad, atol=1e-10, rtol=0)


@pytest.mark.parametrize("mode", ["block", "sum"])
def test_one_block_or_term_is_lora(mode: str) -> None:
    model, _ = layer(mode=mode, blocks=1)
    plain = nn.Sequential(nn.Linear(12, 8)).double()
    plain.load_state_dict({"0.weight": model[0].base_layer.weight, "0.bias": model[0].base_layer.bias})
    inject(plain, AdapterConfig(r=2, lora_alpha=6.0, target_modules=("0",)), seed=1)
    shake(plain, size=0.5)
    x = torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(model(x), plain(x), atol=1e-12, rtol=0)


def test_the_literal_sum_is_one_lora_of_the_summed_rank() -> None:
    _, adapter = layer(mode="sum", blocks=3)
    terms = [3.0 * adapter.lora_B[:, 2 * i : 2 * i + 2] @ adapter.lora_A[2 * i : 2 * i + 2] for i in range(3)]
    torch.testing.assert_close(adapter.delta_weight(), sum(terms).detach(), atol=1e-12, rtol=0)
    assert torch.linalg.matrix_rank(adapter.delta_weight()) == 6 and (adapter.delta_weight() != 0).all()


def test_counts() -> None:
    def count(**options: Any) -> int:
        config = AdapterConfig(method="sparse_lora", r=4, method_options=options)
        return methods.get("sparse_lora").layer_parameters(config, 4, 12, 8)

    assert [count(blocks=m) for m in (1, 2, 4)] == [80, 80, 80]
    assert count(mode="gated") == 84 and count(mode="sum", blocks=3) == 240
    for options in ({"blocks": 4}, {"mode": "gated"}, {"mode": "sum", "blocks": 3}):
        _, adapter = layer(4, **options)
        assert sum(parameter.numel() for parameter in adapter.parameters()) == count(**options)


def trainer(**options: Any) -> Any:
    adapter = AdapterConfig(method="sparse_lora", r=8, method_options={"mode": "gated", **options})
    return toy_trainer(toy_config(adapter=adapter, epochs=100, max_steps=12))


def test_gates_close_and_the_rank_is_the_number_of_open_ones() -> None:
    run = trainer()
    opened = [sum(map(open_gates, run.rule.adapters.values())) for _ in run.steps()]
    assert opened == sorted(opened, reverse=True) and opened[-1] < 0.9 * 8 * len(run.rule.adapters)
    for adapter in run.rule.adapters.values():
        assert torch.linalg.matrix_rank(adapter.delta_weight()) <= open_gates(adapter)


def test_proximal_step_is_the_soft_threshold() -> None:
    run = trainer(threshold=0.25)
    adapter = next(iter(run.rule.adapters.values()))
    with torch.no_grad():
        adapter.lora_gate.copy_(torch.tensor([-1.0, -0.3, -0.25, -0.1, 0.0, 0.2, 0.3, 2.0]))
    run.rule.after_update(1, run.optimizer)
    expected = torch.tensor([-0.75, -0.05, 0.0, 0.0, 0.0, 0.0, 0.05, 1.75])
    torch.testing.assert_close(adapter.lora_gate.detach(), expected)


def test_resumed_run_equals_the_unbroken_one(tmp_path: Path) -> None:
    whole, first, second = trainer(), trainer(), trainer()
    list(whole.steps())
    for metrics in first.steps():
        if metrics.step == 5:
            break
    save_checkpoint(first, tmp_path)
    load_checkpoint(second, tmp_path / "step-000005")
    list(second.steps())
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, second.parameters, strict=True))


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"5 blocks do not divide .*Pick one of 1, 2, 4, 8"):
        inject(llama(), AdapterConfig(method="sparse_lora", r=2, method_options={"blocks": 5}))
    model = llama()
    inject(model, AdapterConfig(method="sparse_lora", r=2), seed=1)
    assert len(adapters_of(model).hosts) == 14
