"""From records to tokens, each marked as trained or not (`core/data/chat_tokens.py` says how).

Templates run in this thread, where they are held to their limits; meanwhile other threads tokenise what has been
rendered, which the tokenizer does outside of Python.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from core.data.chat_tokens import Chat, masked, rendered
from core.data.record_file import lines_of
from core.data.records import Record
from core.data.token_cache import TokenCache, key_of, recipe_of
from core.data.tokenized import TokenizedExample, TokenPart, TokenTable
from core.data.turn_ends import TurnEnds
from core.data.word_tokens import WordTokens
from core.errors import DatasetError, ModelError, StudioError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 256  # records tokenised by one call of the tokenizer
PART = 2048  # records that lie together, in memory and in a file of the cache: what an interruption costs at most
THREADS = 4  # at most; one thread renders what about three can tokenise
ASIDE_CHARACTERS = 2_000_000  # a chunk of more is tokenised while no template runs, whose limit of memory it shares

Progress = Callable[[int, int], None]  # rows done, rows in all
_Job = Callable[[], TokenPart]


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
    spans = [range(start, min(start + PART, len(records))) for start in range(0, len(records), PART)]
    keys = _keys(records, spans, tokenizer, completion_only) if cache else [""] * len(spans)
    kept = [cache.read(key) if cache else None for key in keys]
    missing = [span for span, part in zip(spans, kept, strict=True) if part is None]
    done = len(records) - sum(map(len, missing))
    if progress and done:
        progress(done, len(records))

    def tell(rows: int) -> None:
        nonlocal done
        done += rows
        if progress:
            progress(done, len(records))

    parts: list[TokenPart] = []
    with closing(_made(records, missing, tokenizer, completion_only, tell)) as made:
        for key, part in zip(keys, kept, strict=True):
            fresh = part or next(made)
            parts.append(cache.write(key, fresh) if cache and part is None else fresh)
    if cache and missing:
        cache.trim()
    return TokenTable(parts)


def _keys(
    records: Sequence[Record], spans: Sequence[range], tokenizer: PreTrainedTokenizerBase, completion_only: bool
) -> list[str]:
    recipe = recipe_of(tokenizer, completion_only)
    return [key_of(recipe, lines_of(records, span.start, span.stop)) for span in spans]


def _made(
    records: Sequence[Record],
    spans: Sequence[range],
    tokenizer: PreTrainedTokenizerBase,
    completion_only: bool,
    tell: Callable[[int], None],
) -> Generator[TokenPart, None, None]:
    """The tokens of the records of each span; `tell` hears of every few rows."""
    divided = [[span[at : at + CHUNK] for at in range(0, len(span), CHUNK)] for span in spans]
    chunks = [chunk for span in divided for chunk in span]
    jobs = _jobs(records, chunks, tokenizer, completion_only)
    with closing(_side_by_side(jobs, is_one=len(chunks) == 1)) as finished:
        for span in divided:
            found = []
            for _, part in zip(span, finished, strict=False):
                tell(len(part.rows))
                found.append(part)
            yield TokenPart.joined(found)


def _jobs(
    records: Sequence[Record], chunks: Sequence[range], tokenizer: PreTrainedTokenizerBase, completion_only: bool
) -> Iterator[_Job]:
    """What is left to do for each chunk of records, once its conversations are rendered."""
    ends, words = TurnEnds.of(tokenizer), WordTokens.of(tokenizer)
    for places in chunks:
        chunk = records[places.start : places.stop]
        chats = rendered(chunk, tokenizer, ends)
        job = partial(_part, chunk, chats, tokenizer, words, completion_only)
        small = sum(len(chat.text) for chat in chats if chat) + sum(len(one.text) for one in chunk) <= ASIDE_CHARACTERS
        yield job if small else partial(_done, job())


def _done(part: TokenPart) -> TokenPart:
    return part


def _side_by_side(jobs: Iterator[_Job], is_one: bool) -> Generator[TokenPart, None, None]:
    """The results of the jobs, in order; a few are under way while the next one is being made.

    An error shows when it is the turn of its rows, so that always the first row with one is named.
    """
    if is_one:
        yield from (job() for job in jobs)
        return
    threads = min(THREADS, os.cpu_count() or 1)
    waiting: deque[Future[TokenPart]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="tokenize") as pool:
        failure: StudioError | None = None
        while failure is None:
            try:
                waiting.append(pool.submit(next(jobs)))
            except StopIteration:
                break
            except StudioError as error:
                failure = error
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if failure is not None:
            raise failure


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
