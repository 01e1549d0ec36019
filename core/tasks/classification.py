"""One label for a text, or several: a sequence classifier whose new head trains beside the adapter.

A record's question is the text and its answer the label, so that every dataset format that has both can be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.classifier import LIKELY, head_of, load_classifier, probabilities, untrained
from core.config import TrainConfig
from core.data.records import Record
from core.data.split import split_places
from core.data.text_tokens import tokenize_texts
from core.data.token_parts import Progress
from core.data.tokenized import TokenizedExample, lengths_of
from core.data.truncation import choose_max_length
from core.errors import DatasetError
from core.examples import Examples
from core.loss import device_of
from core.prompt import virtual_ids
from core.scoring.labels import confusion_matrix, label_scores
from core.scoring.scores import Scores
from core.tasks import choice
from core.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEPARATOR = ","  # between the labels of one text
MOST_LABELS = 1000
Numbers = tuple[int, ...]  # of labels
UNBOUNDED = 1 << 30  # tokenizers that know no limit say something larger


@dataclass(frozen=True)
class LabelledExample:
    """A text as tokens, and the numbers of its labels."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    row: int

    @property
    def label(self) -> int:
        """The number of its first label, which is the only one where a text has just one."""
        return self.labels[0]

    @property
    def n_trained(self) -> int:
        """Terms of the loss: one."""
        return 1

    def fingerprint(self) -> list[int]:
        """Numbers that are equal for equal examples only."""
        return [len(self.input_ids), *self.input_ids, len(self.labels), *self.labels]

    def after(self, ids: tuple[int, ...]) -> LabelledExample:
        """The same example with tokens before it that are not trained."""
        return replace(self, input_ids=ids + self.input_ids)


@dataclass
class LabelledBatch:
    """Texts padded on the right: ids and mask (B, T) int64; labels (B) int64, or (B, L) float32 zeros and ones."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    expected: tuple[Numbers, ...]  # the labels once more, by their numbers
    n_tokens: int


class Classification(Task):
    """Cross entropy over labels, or for several labels a text binary cross entropy, averaged over the labels.

    A label's number is its place in `labels`.
    """

    name = choice.CLASSIFICATION

    def __init__(self, labels: Sequence[str], multi_label: bool = False) -> None:
        self.labels = tuple(labels)
        self.multi_label = multi_label
        self.folder: Path | None = None  # of the pretrained model, when this task loaded it

    @classmethod
    def of_records(cls, records: Sequence[Record], multi_label: bool = False) -> Self:
        """The task whose labels are those of the records, sorted; DatasetError when there are fewer than two."""
        found = sorted({label for record in records for label in labels_of(record, multi_label)})
        if len(found) < 2:
            raise DatasetError(f"The dataset has {len(found)} label.", "A classifier needs rows of two labels or more.")
        if len(found) > MOST_LABELS:
            raise DatasetError(
                f"The dataset has {len(found):,} different labels, so they look like answers in words.",
                "Pick a dataset of texts and labels, or another task.",
            )
        return cls(found, multi_label)

    @classmethod
    def of(cls, records: Sequence[Record], config: TrainConfig) -> Self:
        """The task whose labels are those of the records."""
        return cls.of_records(records, config.data.multi_label)

    def load(self, folder: Path, config: TrainConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The pretrained model with a new head, which starts random from the seed."""
        self.folder = folder
        return load_classifier(
            folder, self.labels, config.dtype, seed=config.seed, multi_label=self.multi_label,
            quantization=config.quantization,
        )  # fmt: skip

    def new_modules(self, model: nn.Module) -> tuple[str, ...]:
        """The head, and a pooler that was never trained."""
        return head_of(model) if self.folder is None else untrained(model, self.folder)

    def facts(self) -> dict[str, Any]:
        """The labels in the order of the head's outputs."""
        return {"task": self.name, "labels": list(self.labels), "multi_label": self.multi_label}

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
        places = split_places(records, data.validation_share, data.validation_max_rows, config.seed)
        known = [size for size in (context_length, tokenizer.model_max_length) if 0 < size < UNBOUNDED]
        room = max(0, min(known) - virtual_tokens) if known else 0
        table = tokenize_texts(records, tokenizer, data.max_length or room, progress, self.cache)
        whole = [self._labelled(record, text) for record, text in zip(records, table, strict=True)]
        longest = data.max_length or choose_max_length(lengths_of(table), room)
        before = tuple(range(-1, -1 - virtual_tokens, -1))
        limit = min(longest, room) or longest
        ready = [replace(example, input_ids=example.input_ids[:limit]).after(before) for example in whole]
        if not places[0]:
            raise DatasetError("The dataset has no usable row.", "Add rows, or correct the ones with problems.")
        train, validation = (tuple(ready[place] for place in side) for side in places)
        return Examples(train, validation, longest + virtual_tokens, ())

    def example(self, record: Record, tokenizer: PreTrainedTokenizerBase, max_length: int = 0) -> LabelledExample:
        """One record as tokens; DatasetError for a label that is not one of the task's."""
        return self._labelled(record, tokenize_texts([record], tokenizer, max_length)[0])

    def _labelled(self, record: Record, text: TokenizedExample) -> LabelledExample:
        names = labels_of(record, self.multi_label)
        for name in names:
            if name not in self.labels:
                raise DatasetError(f"Row {record.row} has the label {name!r}.", f"Known: {', '.join(self.labels)}.")
        numbers = tuple(sorted(self.labels.index(name) for name in names))
        return LabelledExample(text.input_ids, numbers, record.row)

    def collate(self, examples: Sequence[LabelledExample], pad_id: int) -> LabelledBatch:
        """Ids and mask (B, T), and labels: (B), or (B, L) where a text may have several."""
        shape = len(examples), max(len(example.input_ids) for example in examples)
        ids, mask = torch.full(shape, pad_id, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for row, example in enumerate(examples):
            ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
            mask[row, : len(example.input_ids)] = 1
        expected = tuple(example.labels for example in examples)
        return LabelledBatch(ids, mask, self._targets(examples), expected, int(mask.sum()))

    def _targets(self, examples: Sequence[LabelledExample]) -> Tensor:
        if not self.multi_label:
            return torch.tensor([example.label for example in examples])
        targets = torch.zeros(len(examples), len(self.labels))
        for row, example in enumerate(examples):
            targets[row, list(example.labels)] = 1.0
        return targets

    def loss_sum(self, model: nn.Module, batch: LabelledBatch) -> Tensor:
        """Sum over the rows of -log p(label); where a text may have several, of the mean of -log p over all labels."""
        return self._loss_sum(_logits(model, batch), batch, self.smoothing(model))

    def _loss_sum(self, logits: Tensor, batch: LabelledBatch, smoothing: float = 0.0) -> Tensor:
        targets = batch.labels.to(logits.device)
        if self.multi_label:
            targets = targets * (1 - smoothing) + smoothing / 2
            each = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
            return each.mean(-1).sum()
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)

    def judged(self, model: nn.Module, batch: LabelledBatch) -> tuple[Tensor, list[tuple[Numbers, Numbers]]]:
        """The loss, and the labels that each text has and gets."""
        logits = _logits(model, batch)
        shares = logits.sigmoid() if self.multi_label else logits.softmax(-1)
        found = [self._chosen(row) for row in shares.cpu()]
        return self._loss_sum(logits, batch), list(zip(batch.expected, found, strict=True))

    def _chosen(self, shares: Tensor) -> Numbers:
        if not self.multi_label:
            return (int(shares.argmax()),)
        return tuple((shares >= LIKELY).nonzero().flatten().tolist())

    def scores(self, outcomes: Sequence[tuple[Numbers, Numbers]]) -> Scores:
        """Accuracy, macro-F1, and the confusion matrix where a text has one label."""
        expected, found = [pair[0] for pair in outcomes], [pair[1] for pair in outcomes]
        values = label_scores(expected, found, len(self.labels))
        if self.multi_label:
            return Scores(values)
        pairs = [labels[0] for labels in expected], [labels[0] for labels in found]
        return Scores(values, self.labels, confusion_matrix(*pairs, len(self.labels)))

    def predict(self, model: nn.Module, examples: Sequence[LabelledExample], pad_id: int, rows: int = 32) -> list[int]:
        """The likeliest label of each example, after the trained positions of the active adapter (`core.prompt`)."""
        before = virtual_ids(model)
        ready = [example if min(example.input_ids, default=0) < 0 else example.after(before) for example in examples]
        found: list[int] = []
        for start in range(0, len(ready), rows):
            batch = self.collate(ready[start : start + rows], pad_id)
            found += probabilities(model, batch.input_ids, batch.attention_mask).argmax(-1).tolist()
        return found


def labels_of(record: Record, multi_label: bool) -> tuple[str, ...]:
    """The record's labels: its answer, or the parts of it between commas where a text may have several, or none."""
    if not record.messages or record.messages[-1].role != "assistant":
        raise DatasetError(f"Row {record.row} has no label.", "Pick a dataset of texts and labels.")
    answer = record.messages[-1].content.strip()
    if not multi_label:
        return (answer,)
    return tuple(dict.fromkeys(part.strip() for part in answer.split(SEPARATOR) if part.strip()))


def _logits(model: Any, batch: LabelledBatch) -> Tensor:
    device = device_of(model)
    logits: Tensor = model(input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device)).logits
    return logits if logits.dtype == torch.float64 else logits.float()
