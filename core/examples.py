"""From records to the tokenised training and validation examples of a run."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from core.config import TrainConfig
from core.data.records import Record
from core.data.split import split
from core.data.template import Progress, tokenize_all
from core.data.truncation import choose_max_length, truncate
from core.errors import ConfigError, DatasetError, NothingTrainedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Example(Protocol):
    """One row as a task trains on it."""

    @property
    def input_ids(self) -> tuple[int, ...]:
        """Its tokens."""
        ...

    @property
    def row(self) -> int:
        """The row of the dataset, from 1."""
        ...

    @property
    def n_trained(self) -> int:
        """Terms of the loss."""
        ...

    def fingerprint(self) -> list[int]:
        """Numbers that are equal for equal examples only."""
        ...

    def after(self, ids: tuple[int, ...]) -> Self:
        """The same example with tokens before it that are not trained."""
        ...


@dataclass(frozen=True)
class Examples:
    """What a run trains on and measures with."""

    train: tuple[Any, ...]  # of the task's own kind of Example
    validation: tuple[Any, ...]
    max_length: int  # tokens; longer examples were cut to this
    left_out: tuple[int, ...]  # rows whose prompt alone is longer than that

    def sha256(self) -> str:
        """A fingerprint of every token and what is trained of it: equal for equal data, tokenizer and settings."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation):
            digest.update(len(part).to_bytes(8, "little"))
            for example in part:
                digest.update(array("q", example.fingerprint()).tobytes())
        return digest.hexdigest()


def prepare_examples(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    context_length: int = 0,
    progress: Progress | None = None,
    virtual_tokens: int = 0,
) -> Examples:
    """Split the records, tokenise both sides, and cut them to the longest length the settings and the model allow.

    `virtual_tokens` are put before each (`core.prompt`) and count towards that length.
    Raises DatasetError when there is nothing to train on.
    """
    if not records:
        raise DatasetError("The dataset has no usable row.", "Add rows, or correct the ones with problems.")
    data = config.data
    if virtual_tokens and context_length and virtual_tokens >= context_length:
        raise ConfigError(
            f"{virtual_tokens} virtual tokens leave no room in a context of {context_length}.", "Take fewer."
        )
    context_length = max(0, context_length - virtual_tokens)
    held_in, held_out = split(records, data.validation_share, data.validation_max_rows, config.seed)
    whole = tokenize_all([*held_in, *held_out], tokenizer, data.completion_only, progress)
    limit = context_length or data.max_length
    wanted = data.max_length or choose_max_length([len(example.input_ids) for example in whole], context_length)
    max_length = min(wanted, limit) if limit else wanted
    train, short = truncate(whole[: len(held_in)], max_length)
    validation = [example.cut(max_length) for example in whole[len(held_in) :]]
    kept = tuple(example for example in validation if example.n_trained)
    if not sum(example.n_trained for example in train):
        raise NothingTrainedError(
            "No token of the dataset is trained.", "Give the rows answers, or train on whole texts."
        )
    lost = [example.row for example in validation if not example.n_trained]
    before = tuple(range(-1, -1 - virtual_tokens, -1))
    trained, measured = (tuple(example.after(before) for example in part) for part in (train, kept))
    return Examples(trained, measured, max_length + virtual_tokens, tuple(sorted([*short, *lost])))
