"""Text classification: the batch, the loss, and a head that learns beside an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from core.adapters import inject
from core.classifier import head_of, load_classifier, untrained
from core.config import AdapterConfig, OptimConfig, TrainConfig
from core.data.records import Message, Record
from core.errors import DatasetError
from core.export.peft import save_adapter
from core.export.task_file import write_task
from core.merge import merge_to_folder
from core.tasks.classification import Classification
from core.train import Trainer
from tests.core.adapters import tiny
from tests.core.toy import toy_tokenizer

WORDS = {"good": ["fine", "lovely", "great", "superb"], "bad": ["awful", "poor", "weak", "dull"]}
RECORDS = [
    Record(row, (Message("user", f"it is {WORDS[label][row % 4]} number {row}"), Message("assistant", label)))
    for row, label in enumerate(["good", "bad"] * 20, start=1)
]


def toy_bert(labels: int = 2) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=len(toy_tokenizer()), max_position_embeddings=64, num_labels=labels,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def test_loss_is_that_of_each_row_by_itself() -> None:
    """Padding must not be seen: the batch's loss is the sum of what transformers gives for each row alone."""
    model, task = toy_bert().double(), Classification.of_records(RECORDS)
    examples = [task.example(record, toy_tokenizer()) for record in RECORDS[:5]]
    assert len({len(example.input_ids) for example in examples}) > 1
    batch = task.collate(examples, pad_id=0)
    alone = [
        F.cross_entropy(model(input_ids=torch.tensor([example.input_ids])).logits, torch.tensor([example.label]))
        for example in examples
    ]
    assert task.loss_sum(model, batch).item() == pytest.approx(sum(loss.item() for loss in alone), abs=1e-10)
    assert batch.n_tokens == sum(len(example.input_ids) for example in examples)


def test_adapter_and_head_learn_and_the_base_does_not() -> None:
    model, task = toy_bert(), Classification.of_records(RECORDS)
    assert task.labels == ("bad", "good")
    frozen = {key: value.clone() for key, value in model.state_dict().items() if "classifier" not in key}
    adapter = AdapterConfig(r=16, modules_to_save=head_of(model))
    optim = OptimConfig(learning_rate=1e-3)
    config = TrainConfig(adapter=adapter, optim=optim, epochs=40, batch_size=8, patience=0, eval_every=100)
    trainer = Trainer(model, toy_tokenizer(), RECORDS, config, task=task)
    losses = [metrics.loss for metrics in trainer.steps()]
    assert losses[-1] < 0.3 * losses[0]
    examples = [task.example(record, toy_tokenizer()) for record in RECORDS]
    found = task.predict(model, examples, pad_id=0)
    assert sum(a == b.label for a, b in zip(found, examples, strict=True)) >= 38
    after = model.state_dict()
    assert all(torch.equal(value, _base(after, key)) for key, value in frozen.items())


def _base(state: dict[str, Any], key: str) -> Any:
    """A tensor of the base, in the wrapper or out of it."""
    layer, _, leaf = key.rpartition(".")
    return state[key] if key in state else state[f"{layer}.base_layer.{leaf}"]


def test_a_loaded_model_has_a_new_head_for_the_labels(tmp_path: Path) -> None:
    toy_bert().save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    model, _ = load_classifier(tmp_path, ("a", "b", "c"), device="cpu")
    again, _ = load_classifier(tmp_path, ("a", "b", "c"), device="cpu")
    assert model.classifier.weight.shape[0] == 3 and torch.equal(model.classifier.weight, again.classifier.weight)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    inject(model, AdapterConfig(r=2, target_modules=("query",), modules_to_save=head_of(model)))
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"bert", "classifier"}


@pytest.mark.parametrize(
    ("make", "new"),
    [
        (tiny.mixtral, ("score",)),
        (tiny.qwen3_moe, ("score",)),
        (tiny.neox, ("score",)),
        (tiny.bart, ("classification_head",)),
        (tiny.t5, ("classification_head",)),
        (tiny.bert_masked, ("classifier", "bert.pooler.dense")),
    ],
)
def test_what_the_files_have_under_other_names_is_not_new(make: Any, new: tuple[str, ...], tmp_path: Path) -> None:
    """Experts, and embeddings that share one table, would else train whole beside the head."""
    make().save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    model, _ = load_classifier(tmp_path, ("a", "b"), device="cpu")
    assert untrained(model, tmp_path) == new


@pytest.mark.parametrize("make", [tiny.mixtral, tiny.neox])
def test_a_classifier_of_a_mixture_is_merged(make: Any, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "base")
    toy_tokenizer().save_pretrained(tmp_path / "base")
    model, _ = load_classifier(tmp_path / "base", ("a", "b"), device="cpu")
    inject(model, AdapterConfig(r=2, modules_to_save=head_of(model)), seed=0)
    tiny.shake(model, size=0.1)
    save_adapter(model, tmp_path / "adapter")
    write_task(tmp_path / "adapter", {"labels": ["a", "b"], "multi_label": False})
    folder = merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    plain.config.pad_token_id = model.config.pad_token_id
    torch.testing.assert_close(tiny.logits(plain, tiny.tokens()), tiny.logits(model, tiny.tokens()), atol=1e-5, rtol=0)


def test_rows_without_labels_are_refused() -> None:
    with pytest.raises(DatasetError, match="no label"):
        Classification.of_records([Record(3, text="plain text")])
    with pytest.raises(DatasetError, match="1 label"):
        Classification.of_records(RECORDS[::2])
