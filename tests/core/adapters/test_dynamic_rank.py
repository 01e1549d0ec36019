"""Dynamic rank: the schedule, what is cut and stays cut, and a resumed run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from core.adapters import inject
from core.adapters.dynamic_rank import rank_at
from core.adapters.inject import adapters_of
from core.checkpoint import load_checkpoint, save_checkpoint
from core.config import AdapterConfig
from core.errors import ConfigError
from tests.core.adapters.tiny import gpt2, shake
from tests.core.toy import toy_config, toy_trainer


def test_schedule_of_the_article() -> None:
    """r0 = 12 and r_min = 4 with t* = 100 (methods of the article, worked out by hand)."""
    beta = math.log(24) / 100
    found = [rank_at(step, 1000, 16, 4, beta=beta) for step in (0, 10, 25, 50, 75, 100, 120)]
    assert found == [16, 13, 9, 6, 5, 4, 4]
    ranks = [rank_at(step, 100, 16, 4) for step in range(101)]
    assert ranks == sorted(ranks, reverse=True) and ranks[69] > 4 and ranks[70] == 4
    cubic = [rank_at(step, 100, 16, 4, "cubic") for step in range(101)]
    assert cubic == sorted(cubic, reverse=True) and (cubic[0], cubic[70]) == (16, 4)
    assert rank_at(3, 10, 4, 4) == 4


def trainer(options: dict[str, Any], **more: Any) -> Any:
    adapter = AdapterConfig(method="dynamic_rank", r=6, method_options={"final_rank": 2, **options})
    return toy_trainer(toy_config(adapter=adapter, epochs=100, max_steps=10, **more))


def active(adapter: Any) -> int:
    """Directions that are not zero."""
    return int(((adapter.lora_A.norm(dim=1) > 0) & (adapter.lora_B.norm(dim=0) > 0)).sum())


@pytest.mark.parametrize("schedule", ["exp", "cubic"])
def test_rank_after_each_step_is_the_scheduled_one(schedule: str) -> None:
    run = trainer({"schedule": schedule})
    for metrics in run.steps():
        expected = rank_at(metrics.step, 10, 6, 2, schedule)
        assert {active(adapter) for adapter in run.rule.pairs} == {expected}
    for adapter in run.rule.pairs:
        assert torch.linalg.matrix_rank(adapter.delta_weight()) <= 2
        cut = adapter.mask == 0
        for parameter, axis in ((adapter.lora_A, 0), (adapter.lora_B, 1)):
            state = run.optimizer.state[parameter]
            assert not state["exp_avg"].index_select(axis, cut.nonzero()[:, 0]).any()


def test_ranks_go_where_they_matter_with_one_budget() -> None:
    run = trainer({"scope": "global"})
    for metrics in run.steps():
        ranks = [active(adapter) for adapter in run.rule.pairs]
        assert sum(ranks) == rank_at(metrics.step, 10, 6, 2) * len(ranks) and min(ranks) >= 1
    assert len(set(ranks)) > 1


def test_the_least_worth_goes_first() -> None:
    model = gpt2().double()
    inject(model, AdapterConfig(method="dynamic_rank", r=4, method_options={"final_rank": 2}), seed=1)
    shake(model)
    adapter: Any = next(iter(adapters_of(model).hosts.values())).adapter("default")
    sizes = [torch.linalg.matrix_norm(torch.outer(adapter.lora_B[:, i], adapter.lora_A[i])).item() for i in range(4)]
    worth = adapter.worth()
    torch.testing.assert_close(worth.detach(), torch.tensor(sizes, dtype=torch.float64), atol=1e-12, rtol=0)
    with torch.no_grad():
        adapter.keep(worth, 2)
    kept = set(sorted(range(4), key=sizes.__getitem__)[2:])
    assert {i for i in range(4) if adapter.mask[i]} == kept


def test_nested_trains_leading_parts() -> None:
    """Every step moves a leading part only; the part of a plain LoRA of that rank at scale alpha / part."""
    run = trainer({"nested": True})
    seen: set[int] = set()
    for _ in run.steps():
        seen |= {adapter.leading for adapter in run.rule.pairs}
        assert all(adapter.mask[: int(adapter.mask.sum())].all() for adapter in run.rule.pairs)
    assert len(seen) > 1


@pytest.mark.parametrize("options", [{}, {"scope": "global"}, {"nested": True}])
def test_resumed_run_equals_the_unbroken_one(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = trainer(options)
    list(whole.steps())
    first = trainer(options)
    for metrics in first.steps():
        if metrics.step == 4:
            break
    save_checkpoint(first, tmp_path)
    second = trainer(options)
    load_checkpoint(second, tmp_path / "step-000004")
    list(second.steps())
    for a, b in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="above the rank"):
        AdapterConfig(method="dynamic_rank", r=2, method_options={"final_rank": 4})
    with pytest.raises(ConfigError, match="exclude each other"):
        AdapterConfig(method="dynamic_rank", method_options={"nested": True, "scope": "global"})
