"""The learning-rate schedule, the parameter groups, and the lengths of a run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from core.adapters import adapter_parameters, inject
from core.config import AdapterConfig, OptimConfig, TrainConfig
from core.optim import learning_rate, make_optimizer, parameter_groups, set_learning_rate
from core.schedule import plan_steps
from tests.core.toy import toy_gpt2, toy_llama


@pytest.mark.parametrize(
    ("schedule", "oracle"), [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)]
)
def test_decay_is_that_of_transformers(schedule: str, oracle: Any) -> None:
    config = OptimConfig(learning_rate=3e-4, schedule=schedule, warmup_share=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = oracle(optimizer, num_warmup_steps=10, num_training_steps=100)
    for step in range(1, 101):
        if step > 10:
            assert learning_rate(step, 100, config) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_warm_up_rises_in_equal_steps_to_the_peak() -> None:
    config = OptimConfig(learning_rate=1e-3, schedule="constant", warmup_share=0.04)
    rates = [learning_rate(step, 100, config) for step in range(1, 8)]
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3, 1e-3])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 3, 50])
def test_every_step_learns(schedule: str, share: float, total: int) -> None:
    config = OptimConfig(learning_rate=1e-3, schedule=schedule, warmup_share=share)
    rates = [learning_rate(step, total, config) for step in range(1, total + 1)]
    assert all(0 < rate <= 1e-3 for rate in rates)
    assert max(rates) == pytest.approx(1e-3)


def test_only_the_adapter_is_optimised_and_only_matrices_decay() -> None:
    model = toy_gpt2()
    inject(model, AdapterConfig(r=2, bias="all"), seed=0)
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.1))
    groups = optimizer.param_groups
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in adapter_parameters(model, "default")}
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.ndim >= 2 for p in groups[0]["params"]) and all(p.ndim == 1 for p in groups[1]["params"])


def test_a_group_keeps_its_own_scale() -> None:
    model = toy_llama()
    inject(model, AdapterConfig(method="lora_plus", r=2, method_options={"ratio": 16.0}), seed=0)
    groups = parameter_groups(model, OptimConfig())
    optimizer = torch.optim.AdamW(groups)
    set_learning_rate(optimizer, 1e-3)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1.6e-2]
    assert [{p.shape[0] == 2 for p in group["params"]} for group in groups] == [{True}, {False}]  # A, then B


def test_weight_decay_is_decoupled() -> None:
    """With a gradient of 0, AdamW shrinks a matrix by lr * decay and leaves vectors alone."""
    model = toy_llama()
    inject(model, AdapterConfig(r=2), seed=0)
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.5))
    before = [parameter.detach().clone() for parameter in adapter_parameters(model)]
    for parameter in adapter_parameters(model):
        parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    for old, new in zip(before, adapter_parameters(model), strict=True):
        torch.testing.assert_close(new.detach(), old * 0.95)


def test_automatic_values() -> None:
    small = plan_steps(300, TrainConfig(epochs=3), validation_rows=15, max_length=128)
    assert (small.batch_size, small.steps_per_epoch, small.total_steps) == (8, 38, 114)
    assert plan_steps(500, TrainConfig()).batch_size == 16
    large = plan_steps(100_000, TrainConfig(epochs=1), validation_rows=500)
    assert large.total_steps / large.eval_every == pytest.approx(20, abs=1)
    assert large.save_every == large.eval_every


@pytest.mark.parametrize(
    ("rows", "epochs", "steps"), [(1, 1.0, 1), (8, 0.01, 1), (17, 1.0, 3), (16, 2.5, 5), (16, 0.3, 1)]
)
def test_number_of_steps(rows: int, epochs: float, steps: int) -> None:
    assert plan_steps(rows, TrainConfig(epochs=epochs, batch_size=8)).total_steps == steps


def test_set_values_are_kept_and_bounded_by_what_there_is() -> None:
    config = TrainConfig(batch_size=64, micro_batch_size=32, eval_every=7, save_every=5, max_steps=11, epochs=99)
    plan = plan_steps(20, config, validation_rows=2)
    assert (plan.batch_size, plan.micro_batch_size) == (20, 20)
    assert (plan.eval_every, plan.save_every, plan.total_steps) == (7, 5, 11)


def test_long_examples_get_small_micro_batches() -> None:
    sizes = [plan_steps(1000, TrainConfig(), max_length=length).micro_batch_size for length in (64, 256, 1024, 8192)]
    assert sizes == [8, 8, 2, 1]


def test_measuring_stays_cheap_on_a_small_run() -> None:
    plan = plan_steps(285, TrainConfig(), validation_rows=15, max_length=128)
    forward_rows = math.ceil(plan.total_steps / plan.eval_every) * 15
    assert forward_rows / 2 <= 0.12 * plan.total_steps * plan.batch_size
