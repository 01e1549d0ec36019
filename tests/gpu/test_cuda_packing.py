"""Packed rows, graphs, the memory of the longest batch and determinism, on a CUDA device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core import graph_shapes, step_graphs
from core.checkpoint import load_checkpoint, save_checkpoint
from core.config import AdapterConfig, DataConfig, OptimConfig
from core.train import StepMetrics, Trainer
from tests.core.toy import same_bits, toy_config, toy_llama, toy_trainer, trained_state
from tests.live import figure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
]
HEADS = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}


def trainer(dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "adapter": AdapterConfig(r=4, lora_alpha=8), "data": DataConfig(validation_share=0.0),
        "optim": OptimConfig(learning_rate=1e-3), "batch_size": 8, "micro_batch_size": 0, "epochs": 100.0,
    }  # fmt: skip
    model = toy_llama(**HEADS, initializer_range=0.05).to(dtype).cuda()
    return toy_trainer(toy_config(**{**settings, **changes}), model=model)


def first(made: Trainer, steps: int) -> list[StepMetrics]:
    return [metrics for _, metrics in zip(range(steps), made.steps(), strict=False)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_packed_steps_follow_the_padded_ones(dtype: torch.dtype) -> None:
    packed, padded = trainer(dtype, graphs=False), trainer(dtype, packing=False)
    assert packed.micro_batches.packed and not padded.micro_batches.packed
    figure(f"{dtype}: {packed.micro_batches.describe()}")
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
    for one, other in zip(first(packed, 5), first(padded, 5), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=tolerance)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=5 * tolerance)
        assert one.positions <= other.positions


@pytest.mark.parametrize(
    "settings", [{}, {"lora_dropout": 0.1}, *({"method": name} for name in ("dora", "adalora", "delta_lora"))], ids=str
)
def test_replayed_steps_are_the_ordinary_ones(settings: dict[str, Any]) -> None:
    adapter = AdapterConfig(r=4, lora_alpha=8, **settings)
    graphs, eager = trainer(adapter=adapter), trainer(adapter=adapter, graphs=False)
    replayed, ordinary = first(graphs, 24), first(eager, 24)
    assert graphs.gradients.graphs.reason == "" and graphs.gradients.keeps_buffers, graphs.gradients.graphs.in_words()
    assert any("CUDA graphs" in note for note in replayed[0].notes)
    for one, other in zip(replayed, ordinary, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2e-2)
    seconds = [sum(metrics.seconds for metrics in side[18:]) for side in (replayed, ordinary)]
    figure(f"six steps of a toy: replayed {seconds[0] * 1e3:.1f} ms, ordinary {seconds[1] * 1e3:.1f} ms")


@pytest.mark.parametrize("often", [3, 1000])
def test_what_the_gpu_is_busy_with_is_recorded_when_it_comes_often(monkeypatch: pytest.MonkeyPatch, often: int) -> None:
    monkeypatch.setattr(step_graphs, "MOST_LAG", -1.0)  # as if every pass went on after its last launch
    monkeypatch.setattr(graph_shapes, "OFTEN", often)
    measured, eager = trainer(batch_size=24), trainer(batch_size=24, graphs=False)  # all rows: always one shape
    steps, ordinary = first(measured, 40), first(eager, 40)
    assert measured.gradients.graphs.reason == "" and measured.gradients.keeps_buffers == (often == 3)
    assert any(step_graphs.BUSY in note for metrics in steps[1:] for note in metrics.notes)
    for one, other in zip(steps, ordinary, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2e-2)


def test_the_device_goes_on_while_a_step_is_told(tmp_path: Path) -> None:
    ahead, waiting = trainer(batch_size=24, save_every=1000), trainer(batch_size=24, save_every=1000)
    waiting.gradients.begin = lambda rows, step: None  # type: ignore[method-assign]
    steps = ahead.steps()
    replayed = [next(steps) for _ in range(12)]
    assert ahead.gradients.has_begun, ahead.gradients.graphs.in_words()
    save_checkpoint(ahead, tmp_path)  # of step 12, while the gradients of the next one are computed
    for one, other in zip(replayed, first(waiting, 12), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2e-2) and one.tokens == other.tokens
    resumed = trainer(batch_size=24, save_every=1000)
    load_checkpoint(resumed, tmp_path / "step-000012")
    assert next(steps).loss == pytest.approx(first(resumed, 1)[0].loss, rel=2e-2)


def test_the_longest_batch_is_measured_before_the_first_step() -> None:
    made = trainer()
    before = trained_state(made)
    note = first(made, 1)[0].notes[0]
    assert "The longest batch takes" in note and "of 2 layers: nothing" in note
    assert made.step == 1 and not same_bits(before, trained_state(made))


def test_deterministic_runs_have_the_same_bits() -> None:
    one, other = trainer(deterministic=True), trainer(deterministic=True)
    assert [metrics.loss for metrics in first(one, 6)] == [metrics.loss for metrics in first(other, 6)]
    assert same_bits(trained_state(one), trained_state(other))
    assert not torch.are_deterministic_algorithms_enabled()
