"""Records as parts of a table of tokens: kept ones first, the others made anew by a few threads at a time.

How a record becomes tokens is the caller's business (`core.data.template`, `core.data.text_tokens`), given as jobs:
each is prepared in this thread, and done in another one, which the tokenizer does outside of Python.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager

from core.data.record_file import lines_of
from core.data.records import Record
from core.data.token_cache import TokenCache, key_of
from core.data.tokenized import TokenPart, TokenTable
from core.errors import StudioError

CHUNK = 256  # records tokenised by one call of the tokenizer
PART = 2048  # records that lie together, in memory and in a file of the cache: what an interruption costs at most
THREADS = 4  # at most; one thread renders what about three can tokenise
COLLECTED_AFTER = (10_000, 10, 100)  # objects, quick looks at the youngest, at those that stayed; as `gc` counts them

Progress = Callable[[int, int], None]  # rows done, rows in all
Job = Callable[[], TokenPart]  # what is left to do for some consecutive records
Jobs = Callable[[Sequence[range]], Iterator[Job]]  # one for each chunk of places


def finished(part: TokenPart) -> Job:
    """The job of a part that is there already."""
    return lambda: part


def token_table(
    records: Sequence[Record],
    jobs: Jobs,
    recipe: Callable[[], bytes],
    progress: Progress | None = None,
    cache: TokenCache | None = None,
) -> TokenTable:
    """The tokens of all records, in order.

    Parts that the `cache` has under the `recipe` are taken from it; others are kept there as soon as they are made.
    """
    spans = [range(start, min(start + PART, len(records))) for start in range(0, len(records), PART)]
    keys = _keys(records, spans, recipe()) if cache else [""] * len(spans)
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
    with _few_collections(), closing(_made(missing, jobs, tell)) as made:
        for key, part in zip(keys, kept, strict=True):
            fresh = part or next(made)
            parts.append(cache.write(key, fresh) if cache and part is None else fresh)
    if cache and missing:
        cache.trim()
    return TokenTable(parts)


@contextmanager
def _few_collections() -> Iterator[None]:
    """Inside, Python looks for unreachable cycles more rarely.

    The rows in hand live through several of its quick looks, and so bring on thorough ones, each of which walks through
    all that the imported libraries hold; there are no cycles among them.
    """
    before = gc.get_threshold()
    gc.set_threshold(*(usual and max(usual, least) for usual, least in zip(before, COLLECTED_AFTER, strict=True)))
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _keys(records: Sequence[Record], spans: Sequence[range], recipe: bytes) -> list[str]:
    return [key_of(recipe, lines_of(records, span.start, span.stop)) for span in spans]


def _made(spans: Sequence[range], jobs: Jobs, tell: Callable[[int], None]) -> Generator[TokenPart, None, None]:
    """The tokens of the records of each span; `tell` hears of every few rows."""
    divided = [[span[at : at + CHUNK] for at in range(0, len(span), CHUNK)] for span in spans]
    chunks = [chunk for span in divided for chunk in span]
    with closing(_side_by_side(jobs(chunks), is_one=len(chunks) == 1)) as results:
        for span in divided:
            found = []
            for _, part in zip(span, results, strict=False):
                tell(len(part.rows))
                found.append(part)
            yield TokenPart.joined(found)


def _side_by_side(jobs: Iterator[Job], is_one: bool) -> Generator[TokenPart, None, None]:
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
