"""AdaLoRA: the budget, what is cut and comes back, the regulariser, and peft's allocator as the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.adapters import adalora, inject
from core.checkpoint import load_checkpoint, save_checkpoint
from core.config import AdapterConfig
from core.errors import ConfigError
from core.methods import methods
from core.methods.adalora import AdaLoRAOptions, AdaLoRASchedule
from tests.core.adapters.tiny import shake
from tests.core.toy import toy_config, toy_trainer


def test_budget_of_the_authors_code() -> None:
    schedule = AdaLoRASchedule(target_r=8, tinit=500, tfinal=1500, delta_t=1, total_steps=3000)
    steps = (0, 500, 501, 750, 1000, 1500, 1501, 3000)
    assert [schedule.budget(step, 288, 192) for step in steps] == [288, 288, 287, 232, 204, 192, 192, 192]


def trainer(r: int = 6, steps: int = 20, **options: Any) -> Any:
    adapter = AdapterConfig(method="adalora", r=r, lora_alpha=8.0, method_options=options)
    return toy_trainer(toy_config(adapter=adapter, epochs=100, max_steps=steps))


def test_ranks_follow_the_budget_and_differ_between_layers() -> None:
    run = trainer(target_r=2, delta_t=1)
    count = len(run.rule.parts)
    for metrics in run.steps():
        ranks = [adapter.rank for adapter in run.rule.parts]
        expected = run.rule.budget(metrics.step)
        assert sum(ranks) == expected if metrics.step > run.rule.schedule.tinit else sum(ranks) == 6 * count
    assert sum(ranks) == 2 * count and len(set(ranks)) > 1


@torch.no_grad()
def cut(rule: Any, budget: int) -> None:
    for part, kept in zip(rule.parts, rule._chosen(budget), strict=True):
        part.lora_E.mul_(kept)


def test_a_cut_triplet_can_come_back_before_the_ranks_are_final() -> None:
    run = trainer(target_r=2, delta_t=1)
    next(run.steps())
    first = run.rule.parts[0]
    with torch.no_grad():
        for part in run.rule.parts:
            part.lora_E.fill_(0.1)  # as the optimizer moves also those that were cut
            part.importance_lora_E.fill_(1.0)
            part.uncertainty_lora_E.fill_(1.0)
        first.importance_lora_E[0] = 0.0
    cut(run.rule, 6 * len(run.rule.parts) - 1)
    assert not first.lora_E[0] and first.rank == 5 and first.lora_A[0].any() and first.lora_B[:, 0].any()
    with torch.no_grad():
        first.lora_E[0], first.importance_lora_E[0], first.importance_lora_E[1] = 0.1, 2.0, 0.0
    cut(run.rule, 6 * len(run.rule.parts) - 1)
    assert first.lora_E[0] and not first.lora_E[1]


def test_regulariser_is_the_mean_distance_from_orthonormal() -> None:
    run = trainer(orth_reg_weight=0.3)
    norms = []
    for part in run.rule.parts:
        for q in (part.lora_A, part.lora_B.T):
            norms.append((q @ q.T - torch.eye(6)).square().sum().sqrt())
    torch.testing.assert_close(run.rule.regularizer(), 0.3 * torch.stack(norms).mean())
    assert trainer(orth_reg_weight=0.0).rule.regularizer() is None
    run.rule.regularizer().backward()
    assert all(part.lora_A.grad.any() for part in run.rule.parts)


def test_gradient_of_the_regulariser_is_autograds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bunch by bunch, and 0 where a matrix is orthonormal already."""
    monkeypatch.setattr(adalora, "TOGETHER", 3)
    run = trainer()
    parts = [part.double() for part in run.rule.parts]
    with torch.no_grad():
        parts[0].lora_A.copy_(torch.eye(6, parts[0].lora_A.shape[1]))
    matrices = [matrix for part in parts for matrix in (part.lora_A, part.lora_B)]
    eye = torch.eye(6, dtype=torch.float64)
    norms = [torch.linalg.matrix_norm(q @ q.T - eye) for part in parts for q in (part.lora_A, part.lora_B.T)]
    wanted = torch.autograd.grad(0.5 * torch.stack(norms).mean(), matrices)
    found = torch.autograd.grad(run.rule.regularizer(), matrices)
    assert not found[0].any()
    torch.testing.assert_close(found, wanted, atol=1e-15, rtol=1e-12)


def test_importance_against_the_formula() -> None:
    """Two steps of I, I-bar and U by hand, with the new I-bar in U as in the authors' code."""
    model = nn.Sequential(nn.Linear(5, 4)).double()
    inject(model, AdapterConfig(method="adalora", r=2, target_modules=("0",)), seed=1)
    shake(model, size=0.5)
    host: Any = model[0]
    adapter = host.adapter("default")
    mean, spread = torch.zeros(2, 5, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float64)
    for step in range(2):
        model.zero_grad()
        model(torch.full((3, 5), 1.0 + step, dtype=torch.float64)).square().sum().backward()
        now = (adapter.lora_A * adapter.lora_A.grad).abs().detach()
        mean = 0.85 * mean + 0.15 * now
        spread = 0.85 * spread + 0.15 * (now - mean).abs()
        with torch.no_grad():
            adalora.observe([adapter], 0.85, 0.85)
    torch.testing.assert_close(adapter.importance_lora_A, mean, atol=0, rtol=1e-12)
    torch.testing.assert_close(adapter.uncertainty_lora_A, spread, atol=0, rtol=1e-12)
    rest = adapter.importance_lora_E * adapter.uncertainty_lora_E
    b = adapter.importance_lora_B * adapter.uncertainty_lora_B
    torch.testing.assert_close(adapter.scores(), rest[:, 0] + (mean * spread).mean(1) + b.mean(0))


def test_trained_triplets_as_lora() -> None:
    run = trainer(target_r=2)
    list(run.steps())
    for part in run.rule.parts:
        a, b = part.lora_factors()
        assert a.shape[0] == part.rank
        torch.testing.assert_close(b @ a, part.delta_weight(), atol=1e-12, rtol=0)


def test_counts() -> None:
    config = AdapterConfig(method="adalora", r=12)
    assert methods.get("adalora").layer_parameters(config, 12, 768, 768) == 12 * (768 + 768 + 1)


def test_resumed_run_equals_the_unbroken_one(tmp_path: Path) -> None:
    whole, first, second = (trainer(target_r=2, delta_t=2) for _ in range(3))
    losses = [metrics.loss for metrics in whole.steps()]
    for metrics in first.steps():
        if metrics.step == 9:
            break
    save_checkpoint(first, tmp_path)
    load_checkpoint(second, tmp_path / "step-000009")
    assert [metrics.loss for metrics in second.steps()] == losses[9:]
    assert [part.rank for part in whole.rule.parts] == [part.rank for part in second.rule.parts]


def test_a_trainer_that_reads_another_checkpoint_forgets_its_final_ranks(tmp_path: Path) -> None:
    """Of a run on other rows, at a step at which both have their final ranks."""
    first, second = (trainer(target_r=2, delta_t=1) for _ in range(2))
    with torch.no_grad():
        for part in first.rule.parts:
            part.lora_B.mul_(torch.arange(1.0, 7.0))
    for run in (first, second):
        for metrics in run.steps():
            if metrics.step == 17:
                break
    kept = [part.lora_E.ne(0).tolist() for part in first.rule.parts]
    assert kept != [part.lora_E.ne(0).tolist() for part in second.rule.parts]
    save_checkpoint(first, tmp_path)
    load_checkpoint(second, tmp_path / "step-000017")
    next(second.steps())
    assert [part.lora_E.ne(0).tolist() for part in second.rule.parts] == kept


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="above the rank"):
        AdapterConfig(method="adalora", r=4, method_options={"target_r": 8})
    with pytest.raises(ConfigError, match="leave nothing"):
        trainer(tinit=10, tfinal=10)
    with pytest.raises(ConfigError, match="decides on the ranks"):
        AdapterConfig(method="adalora", rank_pattern={"q_proj": 2})
    assert AdaLoRASchedule.of(AdaLoRAOptions(), 12, 200) == AdaLoRASchedule(8, 20, 60, 2, 200)
