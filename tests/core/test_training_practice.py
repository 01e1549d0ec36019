"""The training practice of the articles: every option really does what it says."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from core.config import AdapterConfig, DataConfig, OptimConfig
from core.data.augmentation import TokenDropout
from core.embedding_noise import embedding_noise
from core.errors import ConfigError
from core.loss import find_head, loss_sum
from core.optim import learning_rate
from core.tasks.classification import Classification
from core.train import Trainer
from tests.core.test_classification import RECORDS, toy_bert
from tests.core.toy import same_bits, toy_config, toy_llama, toy_records, toy_tokenizer, toy_trainer, trained_state

PLAIN = toy_config(adapter=AdapterConfig(r=4), max_steps=4, epochs=10.0, eval_every=4)


def trained(**changes: Any) -> Trainer:
    trainer = toy_trainer(replace(PLAIN, **changes))
    list(trainer.steps())
    return trainer


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": OptimConfig(learning_rate=1e-2, label_smoothing=0.2)},
        {"optim": OptimConfig(learning_rate=1e-2, neftune_alpha=5.0)},
        {"optim": OptimConfig(learning_rate=1e-2, weight_decay=0.5)},
        {"optim": OptimConfig(learning_rate=1e-2, max_grad_norm=1e-3)},
        {"optim": OptimConfig(learning_rate=1e-2, schedule="constant")},
        {"optim": OptimConfig(learning_rate=1e-2, schedule="linear")},
        {"optim": OptimConfig(learning_rate=1e-2, warmup_share=0.9)},
        {"adapter": AdapterConfig(r=4, lora_dropout=0.3)},
        {"data": DataConfig(validation_share=0.2, token_dropout=0.3)},
        {"data": DataConfig(validation_share=0.2, curriculum="short_first")},
        {"dtype": "bfloat16"},
    ],
    ids=(
        "label smoothing",
        "NEFTune",
        "weight decay",
        "clipping",
        "constant",
        "linear",
        "warm-up",
        "dropout",
        "token dropout",
        "curriculum",
        "mixed precision",
    ),
)
def test_every_option_changes_the_run_and_repeats_bit_for_bit(changes: dict[str, Any]) -> None:
    if changes.get("dtype"):
        plain, one, other = (_half(dtype) for dtype in ("float32", "bfloat16", "bfloat16"))
    else:
        plain, one, other = trained(), trained(**changes), trained(**changes)
    assert not same_bits(trained_state(plain), trained_state(one))
    assert same_bits(trained_state(one), trained_state(other))


def _half(dtype: str) -> Trainer:
    """A run whose frozen base has that number format, while the adapter's masters stay in float32."""
    trainer = toy_trainer(PLAIN, model=toy_llama().to(getattr(torch, dtype)))
    list(trainer.steps())
    assert all(parameter.dtype == torch.float32 for parameter in trainer.parameters)
    return trainer


def test_label_smoothing_is_that_of_torch_and_only_in_training() -> None:
    model = toy_llama().double()
    ids = torch.arange(24).view(2, 12) + 5
    labels = torch.where(torch.arange(12) < 4, -100, ids)
    logits, wanted = model(input_ids=ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    expected = F.cross_entropy(logits, wanted, reduction="sum", label_smoothing=0.3).item()
    for head in (None, find_head(model)):
        assert loss_sum(model, head, ids, labels, 0.3).item() == pytest.approx(expected, rel=1e-9)
    smooth = toy_trainer(replace(PLAIN, optim=OptimConfig(learning_rate=1e-2, label_smoothing=0.3)))
    assert smooth.evaluate() == toy_trainer(PLAIN).evaluate()


def test_labels_of_a_classifier_are_smoothed_as_torch_does() -> None:
    model, task = toy_bert().double(), Classification.of_records(RECORDS)
    task.label_smoothing = 0.2
    batch = task.collate([task.example(record, toy_tokenizer()) for record in RECORDS[:4]], 0)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    expected = F.cross_entropy(logits, batch.labels, reduction="sum", label_smoothing=0.2).item()
    for module in model.modules():
        module.training = False
    model.training = True  # the mode alone, without the model's own dropout
    assert task.loss_sum(model, batch).item() == pytest.approx(expected, rel=1e-9)
    model.training = False
    plain = F.cross_entropy(logits, batch.labels, reduction="sum").item()
    assert task.loss_sum(model, batch).item() == pytest.approx(plain, rel=1e-9) != expected


def test_noise_is_uniform_of_the_papers_size_and_only_in_training() -> None:
    model = toy_llama()
    ids, table = torch.arange(40).view(4, 10), model.get_input_embeddings()
    clean = table(ids)
    with embedding_noise(model, 5.0):
        assert torch.equal(table(ids), clean)  # evaluation mode
        model.train()
        noise = table(ids) - clean
    bound = 5.0 / (10 * clean.shape[-1]) ** 0.5
    assert noise.abs().max() <= bound * (1 + 1e-5)
    assert noise.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert torch.equal(table(ids), clean)  # the hook is gone


def test_token_dropout_spares_what_is_trained_and_special() -> None:
    trainer = toy_trainer(PLAIN)
    example = max(trainer.examples.train, key=lambda one: len(one.input_ids))
    hide = TokenDropout(0.9, toy_tokenizer())
    changed = hide(example, 0, 0)
    special = set(toy_tokenizer().all_special_ids)
    pairs = list(zip(example.input_ids, changed.input_ids, example.loss_mask, strict=True))
    assert changed.loss_mask == example.loss_mask and changed.row == example.row
    assert all(before == after for before, after, wanted in pairs if wanted or before in special)
    free = [(before, after) for before, after, wanted in pairs if not wanted and before not in special]
    assert sum(before != after for before, after in free) > 0.6 * len(free)


def test_an_augmentation_of_ones_own_sees_every_row_once_an_epoch() -> None:
    trainer = toy_trainer(replace(PLAIN, max_steps=0, epochs=1.0))
    seen: list[int] = []

    def note(example: Any, step: int, row: int) -> Any:
        seen.append(example.row)
        return example

    trainer.gradients.prepared.augment = note
    list(trainer.steps())
    assert sorted(seen) == sorted(example.row for example in trainer.examples.train)


def test_the_curriculum_goes_from_short_to_long_once() -> None:
    config = replace(PLAIN, data=DataConfig(validation_share=0.2, curriculum="short_first"), max_steps=0)
    sampler = toy_trainer(config, records=toy_records(30)).sampler
    longest = [max(sampler.lengths[row] for row in sampler.next_rows()) for _ in range(sampler.steps_per_epoch)]
    assert longest == sorted(longest) and longest[0] < longest[-1]
    second = [max(sampler.lengths[row] for row in sampler.next_rows()) for _ in range(sampler.steps_per_epoch)]
    assert second != sorted(second)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_rise_through_the_warm_up_and_never_rise_again(schedule: str) -> None:
    config = OptimConfig(learning_rate=1.0, schedule=schedule, warmup_share=0.2)
    rates = [learning_rate(step, 100, config) for step in range(1, 101)]
    assert rates[:20] == pytest.approx([step / 20 for step in range(1, 21)])
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(rates[19:]))
    end = {"cosine": 0.0006, "linear": 0.0125, "constant": 1.0}[schedule]
    assert rates[-1] == pytest.approx(end, abs=1e-3)


def test_token_dropout_is_refused_for_pairs() -> None:
    from tests.core.test_preference import CONFIG, PAIRS

    with pytest.raises(ConfigError, match="prompts of a pair differ"):
        Trainer(toy_llama(), toy_tokenizer(), PAIRS, replace(CONFIG, data=DataConfig(token_dropout=0.1)))
