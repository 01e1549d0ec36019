"""Preference tuning: the loss against the paper's formula, a reference without a second model, what is learned."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from core.adapters import inject, set_adapter
from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig
from core.data.records import Message, Record
from core.errors import ConfigError, DatasetError
from core.tasks.preference import Preference
from core.train import Trainer
from tests.core.toy import toy_llama, toy_records, toy_tokenizer


def pair(row: int, ask: str, better: str, worse: str) -> Record:
    asked = Message("user", ask)
    return Record(row, (asked, Message("assistant", better)), rejected=(asked, Message("assistant", worse)))


PAIRS = [
    pair(row, f"{row} What is {row}?", f"It is {row}{'!' * (row % 3)}", f"Who knows {row}{'?' * (row % 4)}")
    for row in range(1, 25)
]
CONFIG = TrainConfig(
    adapter=AdapterConfig(r=4), optim=OptimConfig(learning_rate=5e-3), data=DataConfig(validation_share=0.25),
    max_steps=20, epochs=100, batch_size=6, eval_every=20, patience=0,
)  # fmt: skip


def log_p(model: Any, ids: tuple[int, ...], mask: tuple[bool, ...]) -> torch.Tensor:
    """log p of the trained tokens of one unpadded row, the plain way."""
    tokens = torch.tensor([ids])
    shares = model(input_ids=tokens).logits[0].log_softmax(-1)
    return sum(
        (shares[t - 1, ids[t]] for t in range(1, len(ids)) if mask[t]), start=torch.zeros((), dtype=shares.dtype)
    )


def randomised(model: Any, name: str = "default") -> Any:
    torch.manual_seed(3)
    for path, parameter in model.named_parameters():
        if f"adapters.{name}" in path:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_loss_and_gradients_are_those_of_the_paper() -> None:
    """With a deep copy of the bare base as the reference, each row by itself, no head split off, in float64."""
    base = toy_llama().double()
    model = copy.deepcopy(base)
    inject(model, AdapterConfig(r=4))
    randomised(model)
    set_adapter(model, "default")
    task = Preference(beta=0.3)
    task.bind(model, TrainConfig(fast_path=False))
    assert task.head is not None
    examples = task.prepare(
        PAIRS[:5], toy_tokenizer(), TrainConfig(data=DataConfig(validation_share=0)), 0, None, 0
    ).train
    loss = task.loss_sum(model, task.collate(examples, 0))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ours = torch.autograd.grad(loss, parameters)
    expected = torch.zeros((), dtype=torch.float64)
    for one in examples:
        ratios = []
        for side in (one.chosen, one.rejected):
            with torch.no_grad():
                reference = log_p(base, side.input_ids, side.loss_mask)
            ratios.append(log_p(model, side.input_ids, side.loss_mask) - reference)
        expected = expected - F.logsigmoid(0.3 * (ratios[0] - ratios[1]))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    for mine, plain in zip(ours, torch.autograd.grad(expected, parameters), strict=True):
        assert torch.allclose(mine, plain, rtol=1e-7, atol=1e-12)


def test_only_what_follows_the_common_beginning_is_trained() -> None:
    task = Preference()
    config = TrainConfig(data=DataConfig(validation_share=0))
    one = task.prepare([pair(1, "What?", "It is red.", "It is blue.")], toy_tokenizer(), config, 0, None, 0).train[0]
    words = toy_tokenizer().decode([t for t, on in zip(one.chosen.input_ids, one.chosen.loss_mask, strict=True) if on])
    assert words.startswith("red") or words.startswith(" red")
    assert one.n_trained == 1 and len(one.input_ids) == len(one.chosen.input_ids) + len(one.rejected.input_ids)


def test_pairs_that_differ_only_beyond_the_cut_are_left_out() -> None:
    rows = [*PAIRS[:4], pair(30, "What? " * 20, "a", "b")]
    config = TrainConfig(data=DataConfig(validation_share=0, max_length=40))
    made = Preference().prepare(rows, toy_tokenizer(), config, 0, None, 0)
    assert made.left_out == (30,) and len(made.train) == 4


def test_the_held_out_pairs_are_preferred_after_training() -> None:
    trainer = Trainer(toy_llama(), toy_tokenizer(), PAIRS, CONFIG)
    assert isinstance(trainer.task, Preference)
    assert trainer.evaluate() == pytest.approx(0.6931, abs=1e-4)  # log 2: nothing is preferred yet
    assert trainer.scores.values["preference_accuracy"] == 0.5
    list(trainer.steps())
    assert all(parameter.requires_grad for parameter in trainer.parameters)
    values = trainer.scores.values
    assert values["preference_accuracy"] >= 0.9 and values["preference_margin"] > 0.5
    assert values["reward_chosen"] - values["reward_rejected"] == pytest.approx(values["preference_margin"])


def test_trained_positions_stay_out_of_the_reference() -> None:
    """Prompt tuning puts positions before the text; the base must be asked without them."""
    config = TrainConfig(
        adapter=AdapterConfig(method="prompt", method_options={"tokens": 3}),
        optim=OptimConfig(learning_rate=1e-2), data=DataConfig(validation_share=0), max_steps=2, batch_size=4,
    )  # fmt: skip
    trainer = Trainer(toy_llama(), toy_tokenizer(), PAIRS, config)
    batch = trainer.task.collate(trainer.examples.train[:2], 0)
    assert (batch.input_ids[:, :3] < 0).all()
    losses = [metrics.loss for metrics in trainer.steps()]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DatasetError, match="Row 1 has no worse answer"):
        Preference.of(toy_records(3), TrainConfig())
    mutating = TrainConfig(adapter=AdapterConfig(method="delta_lora", method_options={"mode": "mutate"}))
    with pytest.raises(ConfigError, match="changes the base"):
        Preference().bind(toy_llama(), mutating)
