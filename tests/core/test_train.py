"""The Trainer: its updates against plain loops, when it measures, saves and stops, and that it repeats itself."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from core.adapters import adapter_parameters, inject, set_adapter
from core.checkpoint import restore_best, save_checkpoint
from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig
from core.data.batching import collate
from core.data.records import Message, Record
from core.errors import DatasetError, DivergedError
from core.evaluate import evaluate_loss
from core.tasks.completion import Completion
from core.train import StepMetrics, Trainer
from tests.core.toy import (
    LENGTH,
    same_bits,
    toy_config,
    toy_gpt2,
    toy_llama,
    toy_records,
    toy_tokenizer,
    toy_trainer,
    trained_state,
)
from tests.scenarios.plugin import Say

NO_DROPOUT = AdapterConfig(r=4, lora_alpha=8)


def plain(**changes: Any) -> TrainConfig:
    """No dropout, no validation: what a plain loop can follow."""
    data = DataConfig(validation_share=0.0)
    return toy_config(**{"adapter": NO_DROPOUT, "data": data, "epochs": 1.0, "batch_size": 8, **changes})


def run(trainer: Trainer, steps: int = 10**9) -> list[StepMetrics]:
    metrics = []
    for step in trainer.steps():
        metrics.append(step)
        if len(metrics) == steps:
            break
    return metrics


@pytest.mark.parametrize(("micro_batch_size", "packing"), [(1, True), (3, False), (3, True), (4, False)])
def test_accumulation_equals_one_large_batch(micro_batch_size: int, packing: bool) -> None:
    """Rows have different numbers of trained tokens, which a mean of means would get wrong; packed rows are the same.

    No beginning is shared here: transformers' RMSNorm rounds gradients to float32, which shows in how they are summed.
    """
    optim = OptimConfig(learning_rate=1e-2, epsilon=1e-2)
    whole = toy_trainer(plain(optim=optim, micro_batch_size=8, packing=False), model=toy_llama().double())
    changes = {"micro_batch_size": micro_batch_size, "packing": packing}
    parts = toy_trainer(plain(optim=optim, **changes), model=toy_llama().double())
    parts.micro_batches.shares_prefix = False
    assert parts.micro_batches.packed is packing
    for one, other in zip(run(whole, 3), run(parts, 3), strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-12)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-12)
        assert (other.tokens, other.trained_tokens) == (one.tokens, one.trained_tokens)
    for name, value in trained_state(whole).items():
        torch.testing.assert_close(trained_state(parts)[name], value, rtol=1e-10, atol=1e-12)


def test_equals_a_plain_loop_with_clipping() -> None:
    """Three steps of a loop written out with torch's own parts and the model's own logits."""
    optim = OptimConfig(learning_rate=1e-2, schedule="constant", warmup_share=0.0, max_grad_norm=0.05, weight_decay=0.1)
    config = plain(optim=optim, fast_path=False)  # which norms in float64, where transformers does in float32
    trainer = toy_trainer(config, model=toy_llama().double())
    trainer.micro_batches.shares_prefix = False  # see above
    model = toy_llama().double()
    inject(model, config.adapter, seed=config.seed)
    parameters = list(adapter_parameters(model))
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    for metrics in run(trainer, 3):
        rows = _sampled(trainer, metrics.step)
        batch = collate([trainer.examples.train[row] for row in rows], pad_id=0)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch.labels[:, 1:])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 0.05)
        optimizer.step()
        optimizer.zero_grad()
        assert metrics.loss == pytest.approx(loss.item(), rel=1e-12)
        assert metrics.grad_norm == pytest.approx(norm.item(), rel=1e-12) and norm > 0.05
    for one, other in zip(trainer.parameters, parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def _sampled(trainer: Trainer, step: int) -> list[int]:
    """The rows of a step, counted from 1, as a fresh sampler of the same run draws them."""
    sampler = toy_trainer(trainer.config).sampler
    for _ in range(step):
        drawn = sampler.next_rows()
    return drawn


def test_learns_and_leaves_the_base_as_it_was() -> None:
    trainer = toy_trainer(plain(epochs=12.0, optim=OptimConfig(learning_rate=3e-2)))
    base = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    metrics = run(trainer)
    assert metrics[-1].loss < 0.6 * metrics[0].loss
    assert same_bits(base, {n: p for n, p in trainer.model.named_parameters() if not p.requires_grad})
    assert all(moment["exp_avg"].abs().sum() > 0 for moment in trainer.optimizer.state.values())


def test_metrics_count_steps_epochs_tokens_and_saves() -> None:
    trainer = toy_trainer(toy_config(patience=0, save_every=3))
    metrics = run(trainer)
    rows = len(trainer.examples.train)
    per_epoch = math.ceil(rows / 4)
    assert [m.step for m in metrics] == list(range(1, trainer.total_steps + 1))
    assert metrics[-1].epoch == 4.0 and len(metrics) == 4 * per_epoch
    epoch = metrics[:per_epoch]
    assert sum(m.tokens for m in epoch) == sum(len(e.input_ids) for e in trainer.examples.train)
    assert sum(m.trained_tokens for m in epoch) == sum(e.n_trained for e in trainer.examples.train)
    assert [m.step for m in metrics if m.eval_loss is not None] == [
        *range(2, len(metrics), 2), *([len(metrics)])]  # fmt: skip
    assert all(m.save for m in metrics if m.is_best or m.step % 3 == 0 or m is metrics[-1])
    assert sum(m.save for m in metrics) == sum(m.is_best or m.step % 3 == 0 or m is metrics[-1] for m in metrics)
    assert all(m.seconds > 0 and m.grad_norm > 0 for m in metrics)


def test_two_runs_are_bit_identical_whatever_the_caller_draws() -> None:
    config = toy_config(max_steps=8)
    one, other = toy_trainer(config), toy_trainer(config)
    losses = [m.loss for m in run(one)]
    disturbed = []
    for metrics in other.steps():
        disturbed.append(metrics.loss)
        torch.manual_seed(metrics.step)
        torch.rand(3), np.random.rand(), random.random()
    assert losses == disturbed
    assert same_bits(trained_state(one), trained_state(other))


def test_another_seed_is_another_run() -> None:
    assert run(toy_trainer(toy_config(seed=8)), 2)[1].loss != run(toy_trainer(), 2)[1].loss


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    wanted = torch.rand(1).item(), random.random(), float(np.random.rand())
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    trainer = toy_trainer(model=toy_llama_without_drawing())
    run(trainer, 2)
    assert (torch.rand(1).item(), random.random(), float(np.random.rand())) == wanted


def toy_llama_without_drawing() -> Any:
    with torch.random.fork_rng():
        return toy_llama()


def test_the_mode_of_every_module_is_restored() -> None:
    model = toy_gpt2()
    trainer = toy_trainer(model=model)
    run(trainer, 3)
    assert not any(module.training for module in model.modules())
    model.transformer.h[0].train()
    modes = [module.training for module in model.modules()]
    trainer.evaluate()
    assert [module.training for module in model.modules()] == modes


def test_dropout_is_on_in_training_and_off_in_measuring() -> None:
    trainer = toy_trainer(model=toy_gpt2())
    assert trainer.evaluate() == trainer.evaluate()
    quiet = toy_trainer(toy_config(adapter=NO_DROPOUT))
    noisy = toy_trainer(toy_config(adapter=replace(NO_DROPOUT, lora_dropout=0.5)))
    assert run(quiet, 3)[2].loss != run(noisy, 3)[2].loss


def test_evaluation_is_the_mean_over_tokens() -> None:
    trainer = toy_trainer()
    total, count = 0.0, 0
    for example in trainer.examples.validation:
        ids, mask = torch.tensor([example.input_ids]), torch.tensor(example.loss_mask)
        with torch.no_grad():
            log_p = trainer.model(input_ids=ids).logits[0].log_softmax(-1)
        total -= sum(float(log_p[t - 1, ids[0, t]]) for t in range(1, len(mask)) if mask[t])
        count += int(mask.sum())
    assert trainer.evaluate() == pytest.approx(total / count, rel=1e-5)
    assert math.isnan(evaluate_loss(trainer.model, []))


def test_early_stopping_keeps_the_best_of_an_overfitting_run(tmp_path: Path) -> None:
    """Random answers can only be learnt by heart, so the validation loss turns."""
    draw = random.Random(0)
    answers = [str(draw.randrange(10**6)) for _ in range(24)]
    records = [
        Record(row, (Message("user", f"{row}?"), Message("assistant", answer))) for row, answer in enumerate(answers, 1)
    ]
    data = DataConfig(validation_share=0.25)
    config = toy_config(epochs=100.0, patience=2, eval_every=4, micro_batch_size=4, data=data)
    trainer = toy_trainer(config, records)
    metrics = []
    for step in trainer.steps():
        metrics.append(step)
        if step.save:
            save_checkpoint(trainer, tmp_path)
    measured = {m.step: m.eval_loss for m in metrics if m.eval_loss is not None}
    assert metrics[-1].stopped_early and trainer.stopped_early and trainer.step < trainer.total_steps
    assert trainer.best_step == min(measured, key=lambda step: measured[step] or 0.0)
    assert trainer.best_eval_loss == measured[trainer.best_step]
    assert trainer.step == trainer.best_step + 8  # patience of two measurements
    assert list(trainer.steps()) == []
    assert restore_best(trainer, tmp_path) == trainer.best_step
    assert trainer.evaluate() == trainer.best_eval_loss


def test_patience_0_never_stops() -> None:
    trainer = toy_trainer(toy_config(patience=0, optim=OptimConfig(learning_rate=0.3)))
    assert run(trainer)[-1].step == trainer.total_steps and not trainer.stopped_early


@pytest.mark.scenario(17)
def test_a_rate_that_explodes_is_caught_before_the_weights_are_touched(figure: Say) -> None:
    optim = OptimConfig(warmup_share=0.0)
    object.__setattr__(optim, "learning_rate", 1e30)
    trainer = toy_trainer(toy_config(optim=optim))
    before: dict[str, torch.Tensor] = {}
    with pytest.raises(DivergedError) as caught:
        for _ in trainer.steps():
            before = trained_state(trainer)
    assert trainer.step >= 1
    assert same_bits(before, trained_state(trainer))
    assert f"at step {trainer.step + 1} (learning rate 9.94e+29, dataset rows " in caught.value.what
    assert all(torch.isfinite(p).all() for p in trainer.parameters)
    assert all(parameter.grad is None for parameter in trainer.parameters)
    figure("stopped in the very step, before a weight changed; step, learning rate and rows are named")


@pytest.mark.scenario(17)
def test_the_rows_of_a_poisoned_batch_are_named(figure: Say) -> None:
    """One token's embedding is NaN; only the micro-batch that holds it is to blame."""
    records = [*toy_records(12), Record(77, (Message("user", "Why Ω?"), Message("assistant", "Ω")))]
    trainer = toy_trainer(plain(micro_batch_size=1), records)
    token = toy_tokenizer()("Ω", add_special_tokens=False)["input_ids"][-1]
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[token] = math.nan
    trainer.task = Completion()  # a tied output layer would carry the NaN to every row
    trainer.model.lm_head.weight = torch.nn.Parameter(toy_llama().lm_head.weight.detach().clone(), requires_grad=False)
    before = trained_state(trainer)
    with pytest.raises(DivergedError, match=r"rows 77\)") as caught:
        run(trainer)
    assert caught.value.fix
    if trainer.step == 0:
        assert same_bits(before, trained_state(trainer))
    figure("one poisoned row among 13: exactly that row is named")


def test_a_validation_loss_that_is_not_finite_ends_the_run_before_a_save() -> None:
    trainer = toy_trainer()
    trainer.evaluate = lambda: math.nan  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match=r"validation loss .* step 2"):
        run(trainer)
    assert trainer.best_step == 0


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(DatasetError):
        Trainer(toy_llama(), toy_tokenizer(), [], toy_config())
    long = [Record(1, (Message("user", "x" * 500), Message("assistant", "y")))]
    with pytest.raises(DatasetError, match="prompts alone"):
        toy_trainer(plain(), long)


def test_rows_whose_prompt_is_too_long_are_left_out_and_named() -> None:
    long = Record(99, (Message("user", "x" * 500), Message("assistant", "y")))
    trainer = toy_trainer(plain(), [*toy_records(), long])
    assert trainer.examples.left_out == (99,)
    assert trainer.examples.max_length <= LENGTH
    assert max(len(example.input_ids) for example in trainer.examples.train) <= LENGTH


def test_a_set_length_is_bounded_by_the_models_context() -> None:
    config = plain(data=DataConfig(validation_share=0.0, max_length=4 * LENGTH))
    assert toy_trainer(config).examples.max_length == LENGTH


def test_trains_an_adapter_that_is_already_there_and_no_other() -> None:
    model = toy_llama()
    inject(model, NO_DROPOUT, "first", seed=1)
    inject(model, NO_DROPOUT, "second", seed=2)
    set_adapter(model, "second")
    first = [parameter.detach().clone() for parameter in adapter_parameters(model, "first")]
    second = [parameter.detach().clone() for parameter in adapter_parameters(model, "second")]
    run(Trainer(model, toy_tokenizer(), toy_records(), plain(), adapter="first"), 2)
    assert any(not torch.equal(a, b) for a, b in zip(first, adapter_parameters(model, "first"), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(second, adapter_parameters(model, "second"), strict=True))


@pytest.mark.parametrize("make", [toy_llama, toy_gpt2])
def test_bfloat16_base_trains_float32_adapters(make: Any) -> None:
    optim = OptimConfig(learning_rate=3e-2, warmup_share=0.0)
    trainer = toy_trainer(plain(epochs=3.0, optim=optim), model=make().bfloat16())
    metrics = run(trainer)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.parameters)
    assert metrics[-1].loss < 0.97 * metrics[0].loss
