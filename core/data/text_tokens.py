"""Texts as tokens in the tokenizer's own frame, as encoders read them: single ones, and sources with their targets.

As with conversations (`core.data.template`), they are tokenised in batches by a few threads, and kept from one run to
the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from core.data.records import Record
from core.data.rendering import encode_sources, encode_targets
from core.data.token_cache import TokenCache, recipe_of
from core.data.token_parts import Job, Progress, finished, token_table
from core.data.tokenized import TokenizedExample, TokenPart, TokenTable
from core.errors import DatasetError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Encode = Callable[[Sequence[Record]], tuple[list[list[int]], list[list[int]]]]  # what is read, and what is trained


def tokenize_texts(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 0,
    progress: Progress | None = None,
    cache: TokenCache | None = None,
) -> TokenTable:
    """The last question of each record, cut by the tokenizer to `max_length` tokens (0 cuts nothing); none is trained.

    Raises DatasetError for a record without one.
    """
    limits: dict[str, Any] = {"truncation": bool(max_length), "max_length": max_length or None}

    def encode(chunk: Sequence[Record]) -> tuple[list[list[int]], list[list[int]]]:
        ids: list[list[int]] = tokenizer([text_of(record) for record in chunk], verbose=False, **limits)["input_ids"]
        return ids, [[]] * len(chunk)

    jobs = partial(_jobs, records, tokenizer, encode, limits)
    return token_table(records, jobs, partial(recipe_of, tokenizer, f"texts {max_length}"), progress, cache)


def tokenize_pairs(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress | None = None,
    cache: TokenCache | None = None,
) -> TokenTable:
    """The source of each record, all before its last answer, and that answer as its target behind it, which is trained.

    Raises DatasetError for a record without an answer. `pair_of` takes an example apart again.
    """

    def encode(chunk: Sequence[Record]) -> tuple[list[list[int]], list[list[int]]]:
        for record in chunk:
            if len(record.messages) < 2 or record.messages[-1].role != "assistant":
                raise DatasetError(
                    f"Row {record.row} has no answer.", "Pick a dataset of pairs: a source and its target."
                )
        sources = encode_sources([record.messages[:-1] for record in chunk], tokenizer)
        return sources, encode_targets([record.messages[-1].content for record in chunk], tokenizer)

    jobs = partial(_jobs, records, tokenizer, encode, {})
    return token_table(records, jobs, partial(recipe_of, tokenizer, "pairs"), progress, cache)


def pair_of(example: TokenizedExample) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of an example's source, and of its target."""
    middle = len(example.input_ids) - example.n_trained
    return example.input_ids[:middle], example.input_ids[middle:]


def text_of(record: Record) -> str:
    """The text to classify: the last question of the record."""
    questions = [message.content for message in record.messages if message.role == "user"]
    if not questions:
        raise DatasetError(f"Row {record.row} has no text with a label.", "Pick a dataset of texts and labels.")
    return questions[-1]


def _jobs(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    encode: _Encode,
    limits: dict[str, Any],
    chunks: Iterable[range],
) -> Iterator[Job]:
    tokenizer("", **limits)  # sets what the threads' calls then find set: a tokenizer at work must not be changed
    # one that knows languages turns from one to the other for a target, which no other thread may meet half-way
    turns = hasattr(tokenizer, "_switch_to_target_mode")
    for places in chunks:
        job = partial(_part, records[places.start : places.stop], encode)
        yield finished(job()) if turns else job


def _part(records: Sequence[Record], encode: _Encode) -> TokenPart:
    found = [np.asarray(ids, np.int32) for both in zip(*encode(records), strict=True) for ids in both]
    lengths = np.array([len(ids) for ids in found], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths[0::2] + lengths[1::2])])
    mask = np.repeat(np.tile([False, True], len(records)), lengths)
    return TokenPart(np.array([record.row for record in records], np.int64), starts, np.concatenate(found), mask)
