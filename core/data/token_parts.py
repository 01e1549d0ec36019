"""Records as parts of a table of tokens: kept ones first, the others made anew by a few threads at a time.

How a record becomes tokens is the caller's business (`core.data.template`, `core.data.text_tokens`), given as jobs:
each is prepared in this thread, and done in another one, which the tokenizer does outside of Python.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext

from core.data.record_file import lines_of
from core.data.records import Record
from core.data.token_cache import TokenCache, key_of
from core.data.token_helpers import helping
from core.data.tokenized import TokenPart, TokenTable
from core.errors import StudioError

CHUNK = 256  # records tokenised by one call of the tokenizer
PART = 2048  # records that lie together, in memory and in a file of the cache: what an interruption costs at most
THREADS = 4  # at most; one thread renders what about three can tokenise
COLLECTED_AFTER = (10_000, 10, 100)  # objects, quick looks at the youngest, at those that stayed; as `gc` counts them

Progress = Callable[[int, int], None]  # rows done, rows in all
Job = Callable[[], TokenPart]  # what is left to do for some consecutive records
Jobs = Callable[[Iterable[range]], Iterator[Job]]  # one for each chunk of places


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

    Parts that the `cache` has under the `recipe` are taken from it; others are kept there as soon as they are made, by
    this process or by one that helps (`core.data.token_helpers`).
    """
    spans = [range(start, min(start + PART, len(records))) for start in range(0, len(records), PART)]
    keys = _keys(records, spans, recipe()) if cache else [""] * len(spans)
    parts = [cache.read(key) if cache else None for key in keys]
    missing = [number for number, part in enumerate(parts) if part is None]
    done = len(records) - sum(len(spans[number]) for number in missing)
    if progress and done:
        progress(done, len(records))

    counted: set[int] = set()  # missing parts that this process will not make

    def tell(rows: int) -> None:
        nonlocal done
        done += rows
        if progress and rows:
            progress(min(done, len(records)), len(records))

    def count_others() -> None:
        """Tell of what others have made since."""
        there = cache.keys() if cache else frozenset()
        new = [each for each in missing if keys[each] in there and parts[each] is None and each not in counted]
        counted.update(new)
        tell(sum(len(spans[each]) for each in new))

    def is_there(number: int) -> bool:
        """Whether another process was faster."""
        if cache is not None and (part := cache.look_for(keys[number])) is not None:
            parts[number] = part
            tell(0 if number in counted else len(part.rows))
        return parts[number] is not None

    def help_out(number: int, count: int) -> None:
        """From the end to the front, every so many of the missing parts; a helper tells nobody of its progress."""
        assert cache is not None
        left = (each for each in missing[::-1][number::count] if cache.look_for(keys[each]) is None)
        for each, part in _made(left, spans, jobs, lambda rows: None):
            cache.write(keys[each], part)

    helped = helping(help_out, sum(len(spans[number]) for number in missing)) if cache else nullcontext()
    own = _made((each for each in missing if not is_there(each)), spans, jobs, tell)
    with _few_collections(), helped, closing(own):
        for number, part in own:
            parts[number] = cache.write(keys[number], part) if cache else part
            count_others()
    if cache and missing:
        cache.trim()
    return TokenTable([part for part in parts if part is not None])


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


def _made(
    numbers: Iterable[int], spans: Sequence[range], jobs: Jobs, tell: Callable[[int], None]
) -> Generator[tuple[int, TokenPart], None, None]:
    """The tokens of the records of each of these spans; `tell` hears of every few rows."""
    given: deque[int] = deque()

    def chunks() -> Iterator[range]:
        for number in numbers:
            given.append(number)
            yield from (spans[number][at : at + CHUNK] for at in range(0, len(spans[number]), CHUNK))

    found: list[TokenPart] = []
    with closing(_side_by_side(jobs(chunks()), is_one=len(spans) == 1 and len(spans[0]) <= CHUNK)) as results:
        for part in results:
            tell(len(part.rows))
            found.append(part)
            if sum(len(each.rows) for each in found) == len(spans[given[0]]):
                yield given.popleft(), TokenPart.joined(found)
                found = []


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
