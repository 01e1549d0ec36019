"""One label for a text: a sequence classifier whose new head trains beside the adapter.

A record's question is the text and its answer the label, so that every dataset format that has both can be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.config import TrainConfig
from core.data.records import Record
from core.data.split import split
from core.data.template import Progress
from core.data.truncation import choose_max_length
from core.errors import DatasetError, ModelError
from core.examples import Examples
from core.loss import device_of
from core.mode import mode
from core.models import best_device, load_tokenizer, read_config
from core.prompt import virtual_ids
from core.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEADS = ("classifier", "score")  # what transformers' sequence classifiers call the new layer


@dataclass(frozen=True)
class LabelledExample:
    """A text as tokens, and the number of its label."""

    input_ids: tuple[int, ...]
    label: int
    row: int

    @property
    def n_trained(self) -> int:
        """Terms of the loss: one."""
        return 1

    def fingerprint(self) -> list[int]:
        """Numbers that are equal for equal examples only."""
        return [len(self.input_ids), *self.input_ids, self.label]


@dataclass
class LabelledBatch:
    """Texts padded on the right: ids and mask (B, T), labels (B), all int64."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    n_tokens: int


class Classification(Task):
    """Cross entropy over labels; a label's number is its place in `labels`."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)

    @classmethod
    def of_records(cls, records: Sequence[Record]) -> Classification:
        """The task whose labels are those of the records, sorted; DatasetError when there are fewer than two."""
        found = sorted({label_of(record) for record in records})
        if len(found) < 2:
            raise DatasetError(f"The dataset has {len(found)} label.", "A classifier needs rows of two labels or more.")
        return cls(found)

    def prepare(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
        context_length: int,
        progress: Progress | None,
        virtual_tokens: int,
    ) -> Examples:
        """Texts as the tokenizer's sequences, cut at the longest length the settings and the model allow."""
        data = config.data
        held_in, held_out = split(records, data.validation_share, data.validation_max_rows, config.seed)
        room = max(0, context_length - virtual_tokens)
        whole = [self.example(record, tokenizer, data.max_length or room) for record in (*held_in, *held_out)]
        longest = data.max_length or choose_max_length([len(example.input_ids) for example in whole], room)
        before = tuple(range(-1, -1 - virtual_tokens, -1))
        ready = tuple(
            replace(example, input_ids=before + example.input_ids[: min(longest, room) or longest]) for example in whole
        )
        if not held_in:
            raise DatasetError("The dataset has no usable row.", "Add rows, or correct the ones with problems.")
        return Examples(ready[: len(held_in)], ready[len(held_in) :], longest + virtual_tokens, ())

    def example(self, record: Record, tokenizer: PreTrainedTokenizerBase, max_length: int = 0) -> LabelledExample:
        """One record as tokens; DatasetError for a label that is not one of the task's."""
        label = label_of(record)
        if label not in self.labels:
            raise DatasetError(f"Row {record.row} has the label {label!r}.", f"Known: {', '.join(self.labels)}.")
        return LabelledExample(_encode(text_of(record), tokenizer, max_length), self.labels.index(label), record.row)

    def collate(self, examples: Sequence[LabelledExample], pad_id: int) -> LabelledBatch:
        """Ids, mask (B, T) and labels (B)."""
        shape = len(examples), max(len(example.input_ids) for example in examples)
        ids, mask = torch.full(shape, pad_id, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for row, example in enumerate(examples):
            ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
            mask[row, : len(example.input_ids)] = 1
        return LabelledBatch(ids, mask, torch.tensor([example.label for example in examples]), int(mask.sum()))

    def loss_sum(self, model: nn.Module, batch: LabelledBatch) -> Tensor:
        """Sum of -log p(label) over the rows."""
        return F.cross_entropy(_logits(model, batch), batch.labels.to(device_of(model)), reduction="sum")

    @torch.no_grad()
    def predict(self, model: nn.Module, examples: Sequence[LabelledExample], pad_id: int, rows: int = 32) -> list[int]:
        """The likeliest label of each example, after the trained positions of the active adapter (`core.prompt`)."""
        before = virtual_ids(model)
        examples = [
            example if min(example.input_ids, default=0) < 0 else replace(example, input_ids=before + example.input_ids)
            for example in examples
        ]
        found: list[int] = []
        with mode(model, training=False):
            for start in range(0, len(examples), rows):
                batch = self.collate(examples[start : start + rows], pad_id)
                found += _logits(model, batch).argmax(-1).tolist()
        return found


def text_of(record: Record) -> str:
    """The text to classify: the last question of the record."""
    questions = [message.content for message in record.messages if message.role == "user"]
    if not questions:
        raise DatasetError(f"Row {record.row} has no text with a label.", "Pick a dataset of texts and labels.")
    return questions[-1]


def label_of(record: Record) -> str:
    """The label: the record's answer."""
    if not record.messages or record.messages[-1].role != "assistant":
        raise DatasetError(f"Row {record.row} has no label.", "Pick a dataset of texts and labels.")
    return record.messages[-1].content.strip()


def _encode(text: str, tokenizer: Any, max_length: int) -> tuple[int, ...]:
    ids = tokenizer(text, truncation=bool(max_length), max_length=max_length or None)["input_ids"]
    return tuple(ids)


def _logits(model: Any, batch: LabelledBatch) -> Tensor:
    device = device_of(model)
    logits: Tensor = model(input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device)).logits
    return logits if logits.dtype == torch.float64 else logits.float()


def load_classifier(
    source: str | Path, labels: Sequence[str], dtype: str = "float32", device: str | None = None, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained model with a new classification head, frozen and in eval mode, and its tokenizer.

    The head starts random from `seed`: name it in `modules_to_save` (`head_of`), so that it trains. Raises ModelError
    when the model has no classifier in transformers.
    """
    from transformers import AutoModelForSequenceClassification

    folder = Path(source)
    read_config(folder)
    tokenizer = load_tokenizer(folder)
    names = dict(enumerate(labels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=len(names), id2label=names, label2id={name: n for n, name in names.items()},
                dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True, trust_remote_code=False,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"{folder.name!r} cannot classify: {reason}", "Pick a BERT-type model.") from error
    model.config.pad_token_id = tokenizer.pad_token_id  # decoders look for the last token that is not padding
    module: Any = model
    module.requires_grad_(False)
    return module.to(device or best_device()).eval(), tokenizer


def head_of(model: nn.Module) -> tuple[str, ...]:
    """The name of a classifier's new head, for `modules_to_save`."""
    return tuple(name for name in HEADS if hasattr(model, name))
