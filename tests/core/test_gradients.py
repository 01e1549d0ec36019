"""Running out of memory: smaller batches, then layers computed again, and in the end the same gradients."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core import gradients, optim
from core.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig
from core.data.packing import PackedBatch
from core.errors import DivergedError, OutOfMemoryError
from core.gradients import Gradients
from core.optim import AdamWInPieces
from core.step_graphs import StepGraphs
from core.tasks.completion import Completion
from core.train import StepMetrics, Trainer
from tests.core.toy import same_bits, toy_config, toy_llama, toy_trainer, trained_state

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "adapter": AdapterConfig(r=4, lora_alpha=8), "data": DataConfig(validation_share=0.0),
        "optim": OptimConfig(learning_rate=1e-2, epsilon=1e-2), "batch_size": 8, "micro_batch_size": 8,
    }  # fmt: skip
    return toy_config(**{**settings, **changes})


def double_trainer(**changes: Any) -> Trainer:
    trainer = toy_trainer(config(**changes), model=toy_llama().double())
    trainer.micro_batches.shares_prefix = False  # float32 inside RMSNorm shows how gradients are summed
    return trainer


def first(trainer: Trainer, steps: int) -> list[StepMetrics]:
    return [metrics for _, metrics in zip(range(steps), trainer.steps(), strict=False)]


class Memory:
    """A device that has no room for more than some positions, forward or backward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
        self.positions, self.failures = positions, 0
        own = Completion.loss_sum

        def limited(task: Completion, model: Any, batch: Any) -> torch.Tensor:
            loss = own(task, model, batch)
            if batch.input_ids.numel() > self.positions:
                self.failures += 1
                if self.failures % 2:
                    raise FULL
                loss.register_hook(self.fail)
            return loss

        monkeypatch.setattr(Completion, "loss_sum", limited)

    def fail(self, gradient: torch.Tensor) -> None:
        raise FULL


@pytest.mark.parametrize("packing", [True, False])
def test_smaller_batches_go_on_with_the_same_gradients(monkeypatch: pytest.MonkeyPatch, packing: bool) -> None:
    wanted = double_trainer(packing=packing)
    calm = first(wanted, 3)
    assert all(not metrics.notes for metrics in calm)
    trainer = double_trainer(packing=packing)
    memory = Memory(monkeypatch, positions=100)
    metrics = first(trainer, 3)
    assert memory.failures >= 2
    assert all("Memory ran out: from here on at most" in note for note in metrics[0].notes) and metrics[0].notes
    assert all(one.positions <= 8 * 128 for one in metrics)
    for one, other in zip(metrics, calm, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-12)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-12)
    for name, value in trained_state(wanted).items():
        torch.testing.assert_close(trained_state(trainer)[name], value, rtol=1e-10, atol=1e-12)


def test_the_next_batches_are_ready_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, behind = toy_trainer(config()), toy_trainer(config())
    monkeypatch.setattr(behind.gradients.prepared, "look_ahead", lambda rows, number: None)
    steps = ahead.plan.steps_per_epoch + 2  # over the end of an epoch
    for one, other in zip(first(ahead, steps), first(behind, steps), strict=True):
        assert replace(one, seconds=0.0) == replace(other, seconds=0.0)
    assert (ahead.gradients.prepared.hits, behind.gradients.prepared.hits) == (steps - 1, 0)
    assert ahead.sampler.state_dict() == behind.sampler.state_dict()
    ahead.micro_batches.tokens //= 2  # batches that were made before do not fit any more
    first(ahead, 1)
    assert ahead.gradients.prepared.hits == steps - 1


def test_a_resumed_run_divides_its_steps_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changes = {"adapter": AdapterConfig(r=4, lora_alpha=8, lora_dropout=0.1)}
    Memory(monkeypatch, positions=100)
    whole = toy_trainer(config(**changes))
    first(whole, 2)
    save_checkpoint(whole, tmp_path)
    wanted = first(whole, 2)
    resumed = toy_trainer(config(**changes))
    path = latest_checkpoint(tmp_path)
    assert path is not None
    load_checkpoint(resumed, path)
    assert resumed.gradients.state_dict() == whole.gradients.state_dict()
    assert [metrics.loss for metrics in first(resumed, 2)] == [metrics.loss for metrics in wanted]
    assert same_bits(trained_state(whole), trained_state(resumed))


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_layers_computed_again_give_the_same_bits(dropout: float, fast_path: bool) -> None:
    changes = {"adapter": AdapterConfig(r=4, lora_alpha=8, lora_dropout=dropout), "fast_path": fast_path}
    kept = toy_trainer(config(**changes))
    wanted = first(kept, 3)
    steps = 0
    while True:
        again = toy_trainer(config(**changes))
        found = first(again, 1)
        again.gradients.recompute.steps = steps
        if not again.gradients.recompute.more():
            break
        steps += 1
        assert [one.loss for one in found + first(again, 2)] == [one.loss for one in wanted]
        assert same_bits(trained_state(kept), trained_state(again))
        assert not any("forward" in vars(layer) for layer in again.gradients.recompute.layers)
    assert steps == (6 if fast_path else 2)  # two layers, of which fused ones give up three things


def test_a_dora_computed_again_gives_the_same_bits() -> None:
    changes = {"adapter": AdapterConfig(method="dora", r=4, lora_alpha=8)}
    kept, again = toy_trainer(config(**changes)), toy_trainer(config(**changes))
    again.gradients.recompute.steps = 3
    assert [one.loss for one in first(again, 3)] == [one.loss for one in first(kept, 3)]
    assert "1" in again.gradients.recompute.in_words()
    assert same_bits(trained_state(kept), trained_state(again))


def test_layers_computed_again_keep_less() -> None:
    trainer = toy_trainer(config())
    sizes = []
    for steps in range(0, 7, 2):
        trainer.gradients.recompute.steps = steps
        sizes.append(kept_bytes(trainer))
    steps_down = [less / more for more, less in itertools.pairwise(sizes)]
    assert max(steps_down) < 0.85 and sizes[-1] < 0.35 * sizes[0], sizes


def test_where_memory_only_just_suffices_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calm, tight = toy_trainer(config()), toy_trainer(config())
    counted = itertools.count()
    monkeypatch.setattr(gradients, "searches", lambda model: next(counted) if tight.step < 4 else 0)
    found = first(tight, 8)
    assert [bool(metrics.notes) for metrics in found] == [False, True, False, True, False, False, False, False]
    assert "Memory is tight. Computed again backward" in found[1].notes[0]
    assert tight.gradients.recompute.steps == 2
    assert [metrics.loss for metrics in first(calm, 8)] == [metrics.loss for metrics in found]
    assert same_bits(trained_state(calm), trained_state(tight))


def kept_bytes(trainer: Trainer) -> int:
    """Bytes that the forward pass keeps, each storage once, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in trainer.model.parameters()}
    sizes: dict[int, int] = {}
    alive = []
    batch = trainer.micro_batches.batch(trainer.examples.train[:8])

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        if (storage := tensor.untyped_storage()).data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    trainer.model.train()
    with (
        trainer.fast_path.running(),
        trainer.gradients.recompute.running(),
        trainer.task.computing(trainer.model, batch),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        trainer.task.loss_sum(trainer.model, batch)
    return sum(sizes.values())


def test_when_nothing_helps_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(monkeypatch, positions=0)
    trainer = toy_trainer(config())
    before = trained_state(trainer)
    with pytest.raises(OutOfMemoryError, match="every layer computed again") as caught:
        first(trainer, 1)
    assert "max_length" in caught.value.fix
    assert same_bits(before, trained_state(trainer))


def test_graphs_give_their_memory_up_for_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(data=DataConfig(validation_share=0.3))
    calm, full = toy_trainer(settings), toy_trainer(settings)
    judged = Completion.judged

    def short(task: Any, *arguments: Any) -> Any:
        if task is full.task and full.gradients.graphs.keeps_gradients:
            raise FULL
        return judged(task, *arguments)

    monkeypatch.setattr(Completion, "judged", short)
    recorded: Any = {(1,): None}
    full.gradients.graphs.reason, full.gradients.graphs._recorded = "", recorded
    assert full.evaluate() == calm.evaluate()
    assert full.gradients.graphs.reason == "memory is short" and not full.gradients.keeps_buffers
    assert full.notes == ["Steps run operation by operation: memory is short."]


def test_a_measurement_that_does_not_fit_without_graphs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*arguments: Any) -> Any:
        raise FULL

    monkeypatch.setattr(Completion, "judged", short)
    with pytest.raises(torch.OutOfMemoryError):
        toy_trainer(config(data=DataConfig(validation_share=0.3))).evaluate()


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Completion, "loss_sum", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        first(toy_trainer(config()), 1)


class Replays(StepGraphs):
    """As if every batch had been recorded: on a CPU the ordinary pass stands for the replay."""

    keeps_gradients = True  # type: ignore[assignment]

    def has(self, batch: Any) -> bool:
        return True

    takes = has

    def run(self, batch: PackedBatch, trained: int) -> torch.Tensor:
        with self.task.computing(self.model, batch):
            loss = self.task.loss_sum(self.model, batch)
            torch.autograd.backward(loss / trained)
        return loss.detach()


def replaying(**changes: Any) -> Trainer:
    trainer = toy_trainer(config(fast_path=False, **changes))
    trainer.gradients.graphs = Replays(trainer.model, trainer.task, trainer.micro_batches)
    trainer.gradients.graphs.train(trainer.parameters)
    return trainer


@pytest.mark.parametrize("save_every", [1, 3, 1000])
def test_the_device_goes_on_while_a_step_is_told(monkeypatch: pytest.MonkeyPatch, save_every: int) -> None:
    begun: list[int] = []
    own = Gradients.begin

    def begin(self: Gradients, rows: Any, step: int) -> None:
        own(self, rows, step)
        begun.append(step)

    monkeypatch.setattr(Gradients, "begin", begin)
    wanted = toy_trainer(config(fast_path=False))
    calm = list(wanted.steps())
    begun.clear()
    trainer = replaying(save_every=save_every)
    metrics = list(trainer.steps())
    assert [one.loss for one in metrics] == [other.loss for other in calm]
    assert same_bits(trained_state(trainer), trained_state(wanted))
    assert begun == [step for step in range(1, trainer.total_steps) if step % save_every]
    assert trainer.gradients.prepared.hits >= trainer.total_steps - 1


def test_what_was_begun_is_forgotten_with_the_run(tmp_path: Path) -> None:
    wanted = toy_trainer(config(fast_path=False))
    list(wanted.steps())
    trainer = replaying()
    first(trainer, 2)
    assert all(not parameter.grad.any() for parameter in trainer.parameters if parameter.grad is not None)
    steps = trainer.steps()
    next(steps)
    assert any(parameter.grad.any() for parameter in trainer.parameters if parameter.grad is not None)
    save_checkpoint(trainer, tmp_path)  # by a caller who was not asked to
    next(steps)
    saved = latest_checkpoint(tmp_path)
    assert saved is not None
    load_checkpoint(trainer, saved)
    assert trainer.step == 3
    list(steps)
    assert same_bits(trained_state(trainer), trained_state(wanted))


def test_graphs_give_up_their_memory_for_the_first_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "_goes_into_one_piece", lambda groups: True)
    wanted = toy_trainer(config(fast_path=False))
    list(wanted.steps())
    trainer = replaying()
    gave_up: list[int] = []
    monkeypatch.setattr(trainer.gradients.graphs, "give_up", lambda: not gave_up.append(trainer.step))
    own = AdamWInPieces._share_a_count
    failures = iter([FULL])

    def limited(self: AdamWInPieces, index: int, parameters: Any) -> bool:
        if (failure := next(failures, None)) is not None:
            raise failure
        return own(self, index, parameters)

    monkeypatch.setattr(AdamWInPieces, "_share_a_count", limited)
    list(trainer.steps())
    assert gave_up == [0]
    assert same_bits(trained_state(trainer), trained_state(wanted))


def test_a_step_that_was_begun_takes_from_the_end_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    trainer = replaying()
    monkeypatch.setattr("core.train.time", SimpleNamespace(perf_counter=lambda: now))
    steps = trainer.steps()
    next(steps)
    assert trainer.gradients.has_begun
    now += 0.5  # a caller who takes his time: the device went on, and the step must not seem to take nothing
    assert next(steps).seconds == 0.5
    trainer.gradients.forget()
    now += 0.5
    assert next(steps).seconds == 0.0


def test_random_numbers_are_not_drawn_ahead() -> None:
    trainer = replaying(adapter=AdapterConfig(r=4, lora_alpha=8, lora_dropout=0.1))
    next(trainer.steps())
    assert not trainer.gradients.has_begun


def test_a_step_that_diverges_leaves_nothing_begun() -> None:
    optim = OptimConfig(warmup_share=0.0)
    object.__setattr__(optim, "learning_rate", 1e30)
    trainer = replaying(optim=optim)
    with pytest.raises(DivergedError):
        list(trainer.steps())
    assert not trainer.gradients.has_begun
    assert all(not parameter.grad.any() for parameter in trainer.parameters if parameter.grad is not None)
