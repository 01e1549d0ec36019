"""From records to the tokenised training and validation examples of a run."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, Self

from core.config import TrainConfig
from core.data.records import Record
from core.data.split import split_places
from core.data.template import tokenize_all
from core.data.token_cache import TokenCache
from core.data.token_parts import Progress
from core.data.tokenized import TokenTable, lengths_of
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

    train: Sequence[Any]  # of the task's own kind of Example
    validation: Sequence[Any]
    max_length: int  # tokens; longer examples were cut to this
    left_out: tuple[int, ...]  # rows whose prompt alone is longer than that

    def sha256(self) -> str:
        """A fingerprint of every token and what is trained of it: equal for equal data, tokenizer and settings."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for part in (self.train, self.validation):
            digest.update(len(part).to_bytes(8, "little"))
            for fingerprint in _fingerprints(part):
                digest.update(fingerprint)
        return digest.hexdigest()


def _fingerprints(examples: Sequence[Any]) -> Iterator[bytes]:
    if isinstance(examples, TokenTable):
        return examples.fingerprints()
    return (array("q", example.fingerprint()).tobytes() for example in examples)


def prepare_examples(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    context_length: int = 0,
    progress: Progress | None = None,
    virtual_tokens: int = 0,
    cache: TokenCache | None = None,
) -> Examples:
    """Split the records, tokenise both sides, and cut them to the longest length the settings and the model allow.

    `virtual_tokens` are put before each (`core.prompt`) and count towards that length. Tokens that
    the `cache` has are not made again.
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
    places = split_places(records, data.validation_share, data.validation_max_rows, config.seed)
    whole = tokenize_all(records, tokenizer, data.completion_only, progress, cache)
    limit = context_length or data.max_length
    wanted = data.max_length or choose_max_length(lengths_of(whole), context_length)
    max_length = min(wanted, limit) if limit else wanted
    held_in, held_out = (whole.pick(side) for side in places)
    train, short = truncate(held_in, max_length)
    measured = held_out.cut(max_length)
    is_measured = measured.trained > 0
    if not train.trained.sum():
        raise NothingTrainedError(
            "No token of the dataset is trained.", "Give the rows answers, or train on whole texts."
        )
    left_out = sorted([*short, *measured.rows[~is_measured].tolist()])
    before = tuple(range(-1, -1 - virtual_tokens, -1))
    validation = measured.pick(is_measured.nonzero()[0])
    return Examples(train.after(before), validation.after(before), max_length + virtual_tokens, tuple(left_out))
