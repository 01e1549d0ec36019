"""Helping processes: the same tokens, made by two, and no harm from one that fails, stands still or is left alone."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.data import template, token_helpers, token_parts
from core.data.template import tokenize_all
from core.data.token_cache import TokenCache
from core.data.token_helpers import helpers_for, helping
from core.errors import DatasetError
from tests.core.data.test_tokenized import CHATML, SPECIALS, chats

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="helpers are forked, on Linux alone")
ROWS = 400


@pytest.fixture
def tokenizer(make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Parts of 16 rows, and one helper for 200."""
    monkeypatch.setattr(token_parts, "PART", 16)
    monkeypatch.setattr(token_parts, "CHUNK", 8)
    monkeypatch.setattr(token_helpers, "ROWS_WORTH_ONE", 200)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    return make_tokenizer(SPECIALS, CHATML, "<|im_end|>")


@pytest.fixture
def makers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a line for every chunk: who made it, its first row, how many it has.

    This process makes three parts at once and is slow at the fourth, so that a helper comes to those that are done.
    """
    file, parent = tmp_path / "makers", os.getpid()

    def part(records: Any, *rest: Any) -> Any:
        is_slow = os.getpid() == parent and records[0].row > 3 * 16 and (tmp_path / "kept").exists()
        time.sleep(0.5 if is_slow else 0.002)
        with file.open("a") as lines:
            lines.write(f"{os.getpid()} {records[0].row} {len(records)}\n")
        return original(records, *rest)

    original = template._part
    monkeypatch.setattr(template, "_part", part)
    return file


def lines_of(file: Path) -> Iterator[tuple[int, int, int]]:
    for line in file.read_text().splitlines():
        pid, first, rows = map(int, line.split())
        yield pid, first, rows


def test_two_processes_make_the_same_tokens(tmp_path: Path, tokenizer: Any, makers: Path) -> None:
    records = chats(ROWS)
    wanted = tokenize_all(records, tokenizer)
    makers.unlink()
    seen: list[tuple[int, int]] = []
    told_by = tmp_path / "told_by"

    def progress(done: int, total: int) -> None:  # a job's writes to its store, through a connection that is forked too
        seen.append((done, total))
        with told_by.open("a") as lines:
            lines.write(f"{os.getpid()}\n")

    found = tokenize_all(records, tokenizer, progress=progress, cache=TokenCache(tmp_path / "kept"))
    assert set(told_by.read_text().split()) == {str(os.getpid())}
    assert found == wanted and len(list((tmp_path / "kept").glob("*.arrow"))) == ROWS // 16
    rows = {pid: 0 for pid, _, _ in lines_of(makers)}
    for pid, _, count in lines_of(makers):
        rows[pid] += count
    (helper,) = rows.keys() - {os.getpid()}
    assert rows[helper] >= ROWS // 4 and rows[os.getpid()] <= ROWS - rows[helper] + 3 * 16
    assert seen == sorted(seen) and seen[-1] == (ROWS, ROWS)
    assert not psutil.pid_exists(helper)


def test_the_first_bad_row_is_named_whoever_meets_it(tmp_path: Path, tokenizer: Any) -> None:
    records = chats(ROWS)
    for row in (350, 390):  # the helper's
        turns = records[row - 1].messages
        records[row - 1] = type(records[0])(row, turns[:1])
    with pytest.raises(DatasetError, match="Row 350"):
        tokenize_all(records, tokenizer, cache=TokenCache(tmp_path))


def test_a_helper_that_stands_still_or_dies_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))

    def work(number: int, count: int) -> None:
        assert count == 3
        if number == 0:
            raise DatasetError("It is broken.", "Mend it.")
        time.sleep(60)

    before = {child.pid for child in psutil.Process().children()}
    started = time.monotonic()
    with helping(work, 3 * token_helpers.ROWS_WORTH_ONE):
        assert len({child.pid for child in psutil.Process().children()} - before) >= 2
    assert time.monotonic() - started < 5
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_helper_ends_with_the_process_it_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    told = tmp_path / "told"

    def work(number: int, count: int) -> None:
        told.with_suffix(".new").write_text(str(os.getpid()))
        told.with_suffix(".new").rename(told)
        time.sleep(60)

    child = os.fork()
    if not child:  # a process that is killed while it is helped
        try:
            with helping(work, token_helpers.ROWS_WORTH_ONE):
                while not told.exists():
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    helper, ends = int(told.read_text()), time.monotonic() + 10
    while is_running(helper) and time.monotonic() < ends:
        time.sleep(0.01)
    assert not is_running(helper)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_small_datasets_and_single_cores_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert helpers_for(token_helpers.ROWS_WORTH_ONE - 1) == 0
    assert helpers_for(10**6) == token_helpers.MOST
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert helpers_for(10**6) == 0
