"""Delta-LoRA: both modes are one model, the movements telescope, and with K = 0 it is LoRA at another alpha."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.adapters import adapter_parameters, inject, merge, set_adapter
from core.adapters.inject import adapters_of, training_rule
from core.checkpoint import load_checkpoint, save_checkpoint
from core.config import AdapterConfig
from core.errors import ConfigError
from core.export.peft import load_adapter, save_adapter
from tests.core.adapters.tiny import llama, logits, tokens
from tests.core.toy import toy_config, toy_trainer

STEPS = 6


def trained(steps: int = STEPS, rate: float = 1e-2, optimizer: Any = None, **settings: Any) -> Any:
    """A float64 Llama after some steps of Adam without epsilon, driven by the method's own rule."""
    model = llama().double()
    config = AdapterConfig(**{"method": "delta_lora", "r": 2, "lora_alpha": 4.0, **settings})
    inject(model, config, seed=1)
    rule = training_rule(model, "default", 1000)
    parameters = list(adapter_parameters(model))
    adam = optimizer(parameters) if optimizer else torch.optim.Adam(parameters, lr=rate, eps=1e-40)
    for step in range(1, steps + 1):
        adam.zero_grad()
        model(input_ids=tokens(seed=step), labels=tokens(seed=step)).loss.backward()
        rule.before_update(step)
        adam.step()
        rule.after_update(step, adam)
    return model


def parts(model: Any) -> list[Any]:
    return [host.adapter("default") for host in adapters_of(model).hosts.values()]


@pytest.mark.parametrize("start", [0, 3])
def test_both_modes_are_one_model_and_the_movements_telescope(start: int) -> None:
    functional = trained(method_options={"start_step": start})
    literal = trained(method_options={"start_step": start, "mode": "mutate"})
    torch.testing.assert_close(logits(functional, tokens()), logits(literal, tokens()), atol=1e-10, rtol=0)
    for one, other in zip(parts(functional), parts(literal), strict=True):
        torch.testing.assert_close(other.moved, one.movement(), atol=1e-12, rtol=0)
        assert torch.linalg.matrix_rank(one.delta_weight()) <= 4
        a, b = one.lora_factors()
        torch.testing.assert_close(b @ a, one.delta_weight(), atol=1e-12, rtol=0)


def test_from_the_first_step_on_it_is_lora_at_alpha_times_one_plus_lambda() -> None:
    delta = trained(method_options={"delta_scale": 2.0})
    lora = trained(method="lora", lora_alpha=12.0)
    torch.testing.assert_close(logits(delta, tokens()), logits(lora, tokens()), atol=1e-9, rtol=0)


def test_with_plain_gradient_steps_the_rate_shrinks_too() -> None:
    """SGD sees the gradient's scale: alpha (1 + lambda) at the rate / (1 + lambda)."""
    delta = trained(optimizer=lambda p: torch.optim.SGD(p, lr=0.3), method_options={"delta_scale": 2.0})
    lora = trained(optimizer=lambda p: torch.optim.SGD(p, lr=0.1), method="lora", lora_alpha=12.0)
    torch.testing.assert_close(logits(delta, tokens()), logits(lora, tokens()), atol=1e-10, rtol=0)


def test_before_the_start_it_is_lora() -> None:
    delta = trained(method_options={"start_step": STEPS})
    assert torch.equal(logits(delta, tokens()), logits(trained(method="lora"), tokens()))


@pytest.mark.parametrize("mode", ["functional", "mutate"])
def test_merged_saved_and_switched(tmp_path: Path, mode: str) -> None:
    model = trained(method_options={"mode": mode, "start_step": 2})
    expected, base = logits(model, tokens()), llama().double()
    save_adapter(model, tmp_path)
    loaded = llama().double()
    load_adapter(loaded, tmp_path)
    torch.testing.assert_close(logits(loaded, tokens()), expected, atol=1e-12, rtol=0)
    set_adapter(model, None)
    assert torch.equal(logits(model, tokens()), logits(base, tokens()))
    set_adapter(model, "default")
    merge(model)
    torch.testing.assert_close(logits(model, tokens()), expected, atol=1e-12, rtol=0)


def trainer(**options: Any) -> Any:
    adapter = AdapterConfig(method="delta_lora", r=2, method_options=options)
    return toy_trainer(toy_config(adapter=adapter, epochs=100, max_steps=8))


@pytest.mark.parametrize("mode", ["functional", "mutate"])
def test_resumed_run_equals_the_unbroken_one(tmp_path: Path, mode: str) -> None:
    options = {"mode": mode, "start_step": 2}
    whole, first, second = trainer(**options), trainer(**options), trainer(**options)
    losses = [metrics.loss for metrics in whole.steps()]
    for metrics in first.steps():
        if metrics.step == 4:
            break
    save_checkpoint(first, tmp_path)
    load_checkpoint(second, tmp_path / "step-000004")
    assert [metrics.loss for metrics in second.steps()] == losses[4:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, second.parameters, strict=True))


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="dropout"):
        AdapterConfig(method="delta_lora", lora_dropout=0.1)
    with pytest.raises(ConfigError, match="start_step"):
        trainer(start_step=8)
