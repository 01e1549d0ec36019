"""From records to tokens, each marked as trained or not (`core/data/chat_tokens.py` says how).

Templates run in this thread, where they are held to their limits; meanwhile other threads tokenise what has been
rendered, which the tokenizer does outside of Python. Where tokens are put together from words, this thread does it all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from core.data.chat_tokens import Chat, masked, rendered
from core.data.records import Record
from core.data.token_cache import TokenCache, recipe_of
from core.data.token_parts import Job, Progress, finished, token_table
from core.data.tokenized import TokenizedExample, TokenPart, TokenTable
from core.data.turn_ends import TurnEnds
from core.data.word_tokens import WordTokens
from core.errors import DatasetError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASIDE_CHARACTERS = 2_000_000  # a chunk of more is tokenised while no template runs, whose limit of memory it shares


def tokenize(
    record: Record, tokenizer: PreTrainedTokenizerBase, max_length: int = 0, completion_only: bool = True
) -> TokenizedExample:
    """Tokenise one record; see `tokenize_all`.

    Raises DatasetError also when nothing is left to train within `max_length` tokens.
    """
    example = tokenize_all([record], tokenizer, completion_only=completion_only)[0]
    cut = example.cut(max_length)
    if not cut.n_trained:
        first = example.loss_mask.index(True)
        raise DatasetError(
            f"Row {record.row:,}: nothing is left to train within {max_length:,} tokens, as its answer begins at "
            f"token {first + 1:,}.",
            "Raise the maximum length, or shorten the prompt.",
        )
    return cut


def tokenize_all(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    completion_only: bool = True,
    progress: Progress | None = None,
    cache: TokenCache | None = None,
) -> TokenTable:
    """Tokenise records at their full length (`core.data.truncation` cuts them), in batches.

    Parts that the `cache` has are taken from it; others are kept there as soon as they are made.

    Trained are the words of every assistant turn and the token that ends it, not the template's newline after that;
    with `completion_only` off, every token but the first. A template that ends its answers with no special token gets
    the end token after the last one. A plain text trains every token and the end token after it.

    Raises DatasetError naming the row whose answers cannot be told from its prompts, and ModelError for a tokenizer
    that cannot report character offsets.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            "The model has only a slow tokenizer, which cannot tell which characters a token stands for.",
            "Choose a model with a tokenizer.json.",
        )
    jobs = partial(_jobs, records, tokenizer, completion_only)
    return token_table(records, jobs, partial(recipe_of, tokenizer, str(completion_only)), progress, cache)


def _jobs(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, completion_only: bool, chunks: Iterable[range]
) -> Iterator[Job]:
    """What is left to do for each chunk of records, once its conversations are rendered."""
    ends, words = TurnEnds.of(tokenizer), WordTokens.of(tokenizer)
    for places in chunks:
        chunk = records[places.start : places.stop]
        chats = rendered(chunk, tokenizer, ends)
        job = partial(_part, chunk, chats, tokenizer, words, completion_only)
        small = sum(len(chat.text) for chat in chats if chat) + sum(len(one.text) for one in chunk) <= ASIDE_CHARACTERS
        is_quick = words is not None and words.pays  # and in Python, where threads would only wait for each other
        yield job if small and not is_quick else finished(job())


def _part(
    records: Sequence[Record],
    chats: Sequence[Chat | None],
    tokenizer: PreTrainedTokenizerBase,
    words: WordTokens | None,
    completion_only: bool,
) -> TokenPart:
    found = masked(records, chats, tokenizer, words)
    starts = np.cumsum([0, *(len(ids) for ids, _ in found)], dtype=np.int64)
    mask = np.zeros(starts[-1], bool)
    for record, (ids, answers), start in zip(records, found, starts[:-1].tolist(), strict=True):
        spans = [(max(first, 1), stop) for first, stop in (answers if completion_only else [(0, len(ids))])]
        if not any(first < stop for first, stop in spans):
            raise DatasetError(f"Row {record.row:,} has no token to train.", "Give it an answer, or skip bad rows.")
        for first, stop in spans:
            mask[start + first : start + stop] = True
    rows = np.array([record.row for record in records], np.int64)
    return TokenPart(rows, starts, np.concatenate([np.asarray(ids, np.int32) for ids, _ in found]), mask)
