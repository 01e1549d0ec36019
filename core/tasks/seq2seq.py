"""One text into another, by an encoder and a decoder (T5, BART and their kin); the tasks are subclasses.

A record's last answer is the target, and everything before it the source, joined as in `core.data.rendering`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.config import TrainConfig
from core.data.batching import IGNORED
from core.data.records import Record
from core.data.split import split_places
from core.data.text_tokens import pair_of, tokenize_pairs
from core.data.token_parts import Progress
from core.data.truncation import choose_max_length
from core.errors import DatasetError
from core.examples import Examples
from core.loss import device_of
from core.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairExample:
    """A source and its target as tokens, both with the special tokens that the tokenizer gives them."""

    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    row: int

    @property
    def n_trained(self) -> int:
        """Terms of the loss: the target's tokens, its end among them."""
        return len(self.target_ids)

    def fingerprint(self) -> list[int]:
        """Numbers that are equal for equal examples only."""
        return [len(self.input_ids), *self.input_ids, len(self.target_ids), *self.target_ids]

    def after(self, ids: tuple[int, ...]) -> PairExample:
        """The same example with tokens before it that are not trained."""
        return replace(self, input_ids=ids + self.input_ids)


@dataclass
class PairBatch:
    """Pairs padded on the right: ids and mask of the sources (B, S), targets (B, T) with IGNORED as padding."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    n_tokens: int


class Seq2Seq(Task):
    """Cross entropy of the target's tokens, each from the source and the target before it (teacher forcing)."""

    writes = True

    def prepare(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
        context_length: int,
        progress: Progress | None,
        virtual_tokens: int,
    ) -> Examples:
        """Sources and targets as tokens, each cut at the longest length the settings and the model allow."""
        data = config.data
        places = split_places(records, data.validation_share, data.validation_max_rows, config.seed)
        if not places[0]:
            raise DatasetError("The dataset has no usable row.", "Add rows, or correct the ones with problems.")
        room = max(0, context_length - virtual_tokens)
        table = tokenize_pairs(records, tokenizer, progress, self.cache)
        pairs = [pair_of(example) for example in table]
        longest = data.max_length or choose_max_length([max(map(len, pair)) for pair in pairs], room)
        longest = min(longest, room) if room else longest
        before = tuple(range(-1, -1 - virtual_tokens, -1))
        ready = [
            PairExample(before + _cut(source, longest), _cut(target, longest), row)
            for (source, target), row in zip(pairs, table.rows.tolist(), strict=True)
        ]
        train, validation = (tuple(ready[place] for place in side) for side in places)
        return Examples(train, validation, longest + virtual_tokens, ())

    def bind(self, model: nn.Module, config: TrainConfig) -> None:
        """Read with which token the model's targets begin."""
        super().bind(model, config)
        self.start_id = start_id(model)

    def collate(self, examples: Sequence[PairExample], pad_id: int) -> PairBatch:
        """Source ids and mask (B, S), target ids (B, T)."""
        shape = len(examples), max(len(example.input_ids) for example in examples)
        ids, mask = torch.full(shape, pad_id, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        labels = torch.full((len(examples), max(map(_length, examples))), IGNORED, dtype=torch.long)
        for row, example in enumerate(examples):
            ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
            mask[row, : len(example.input_ids)] = 1
            labels[row, : len(example.target_ids)] = torch.tensor(example.target_ids)
        return PairBatch(ids, mask, labels, int(mask.sum()) + sum(map(_length, examples)))

    def loss_sum(self, model: nn.Module, batch: PairBatch) -> Tensor:
        """Sum of -log p over the targets' tokens."""
        device = device_of(model)
        labels = batch.labels.to(device)
        logits: Tensor = model(
            input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device),
            decoder_input_ids=shifted(labels, self.start_id), use_cache=False,
        ).logits  # fmt: skip
        wanted = labels.flatten() != IGNORED
        rows = logits.flatten(0, 1)[wanted]
        rows = rows if rows.dtype == torch.float64 else rows.float()
        targets = labels.flatten()[wanted]
        return F.cross_entropy(rows, targets, reduction="sum", label_smoothing=self.smoothing(model))


def start_id(model: Any) -> int:
    """The token that stands before every target: the decoder's own start token, or else the padding token."""
    found = getattr(model.config, "decoder_start_token_id", None)
    return int(found if found is not None else model.config.pad_token_id or 0)


def shifted(labels: Tensor, start: int) -> Tensor:
    """What the decoder reads (B, T) to give the targets (B, T): the start token and all targets but the last.

    Positions after a target's end hold the start token; nothing before them sees them.
    """
    first = labels.new_full((len(labels), 1), start)
    return torch.cat([first, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, start)], dim=1)


def _cut(ids: tuple[int, ...], longest: int) -> tuple[int, ...]:
    """At most `longest` tokens; the last one, which ends the text, stays the last."""
    return ids if len(ids) <= longest else (*ids[: longest - 1], ids[-1])


def _length(example: PairExample) -> int:
    return len(example.target_ids)
