"""Whatever is in a file, reading it gives records or a DatasetError, soon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.data.dataset import Dataset, inspect_dataset, load_dataset
from core.data.formats import formats
from core.data.problems import RowError
from core.data.turns import check_turns
from core.errors import DatasetError
from tests.scenarios.plugin import Say

QUICK = settings(
    max_examples=200, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
CASES = 10_000
SLOW = settings(QUICK, max_examples=CASES)
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")


def check(dataset: Dataset) -> None:
    """What holds for every dataset that could be read."""
    rows = [record.row for record in dataset.records]
    assert rows == sorted(rows) and 0 <= dataset.share <= 1
    for record in dataset.records:
        assert bool(record.text.strip()) != bool(record.messages)
        record.whole.encode()
        if record.messages:
            check_turns(record.messages)
    assert all(problem.detail and problem.level in ("error", "warning") for problem in dataset.problems)
    for problem in dataset.problems:
        problem.excerpt.encode()
        assert problem.row >= 1 and "\n" not in problem.excerpt


def read(path: Path, content: bytes) -> bool:
    """Whether the file could be read."""
    path.write_bytes(content)
    try:
        check(inspect_dataset(path))
        return True
    except DatasetError as error:
        assert error.what and error.fix
        try:
            load_dataset(path, skip_bad_rows=True)
        except DatasetError as again:
            assert again.what
        else:
            raise AssertionError("loading passed where inspecting refused") from error
        return False


# -- any bytes, and good files with something broken in them

CHARACTERS = st.one_of(
    st.sampled_from(list('{}[]",:\\\n\r\t; \0\x85\u2028\ufeff"ud8e-1.0')),
    st.characters(codec="utf-8"),
    st.just('"text"'),
)
TEXTS = st.lists(CHARACTERS, max_size=60).map("".join)
PIECES = st.one_of(
    st.binary(max_size=12), TEXTS.map(str.encode), st.sampled_from([b'"', b"\r", b"[" * 2000, b"\xff\xfe"])
)
GOOD_ROWS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "你好"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
]  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("good") / "good.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD_ROWS), path)
    return {
        ".jsonl": "\n".join(json.dumps(row) for row in GOOD_ROWS).encode(),
        ".json": json.dumps({"version": 1, "data": GOOD_ROWS}, indent=1).encode(),
        ".csv": b'text,label\n"a, ""b""\nc",good\nfine,bad\n',
        ".tsv": b'source\ttarget\n"a"\tb\nc d\te\n',
        ".txt": "one\n\ntwo 好\r\nthree".encode(),
        ".parquet": path.read_bytes(),
    }


EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), PIECES), min_size=1, max_size=4)


def edited(content: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    for where, length, piece in edits:
        at = int(where * len(content))
        content = content[:at] + piece + content[at + length :]
    return content


@pytest.mark.parametrize("suffix", SUFFIXES)
class TestBytes:
    """Any bytes at all, in any type of file."""

    @QUICK
    @given(content=PIECES)
    def test_any(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        read(tmp_path / f"any{suffix}", content)

    @QUICK
    @given(edits=EDITS)
    def test_broken(self, tmp_path: Path, good: dict[str, bytes], suffix: str, edits: Any) -> None:
        read(tmp_path / f"broken{suffix}", edited(good[suffix], edits))

    @pytest.mark.slow
    @pytest.mark.timeout(3600)
    @pytest.mark.scenario(37)
    def test_long(self, tmp_path: Path, good: dict[str, bytes], suffix: str, figure: Say) -> None:
        readable: list[bool] = []

        @SLOW
        @given(content=PIECES, edits=EDITS)
        def attempt(content: bytes, edits: Any) -> None:
            readable.append(read(tmp_path / f"any{suffix}", content))
            readable.append(read(tmp_path / f"broken{suffix}", edited(good[suffix], edits)))

        attempt()
        assert len(readable) >= 2 * CASES
        figure(f"{suffix}: {len(readable):,} files, only errors with advice ({sum(readable):,} readable)")


# -- any values under the columns of the formats

COLUMNS = sorted({name for format in map(formats.get, formats.names()) for names in format.columns for name in names})
OTHER_COLUMNS = ["input", "context", "system", "history", "other"]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.sampled_from(["a", " ", "[1]", "[{"])
)
TURN = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value"]),
    st.one_of(st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool"]), SCALARS),
)
VALUES = st.recursive(
    st.one_of(SCALARS, st.lists(TURN, max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
ROWS = st.dictionaries(st.sampled_from(COLUMNS + OTHER_COLUMNS), VALUES, max_size=5)


def try_formats(values: dict[str, Any]) -> Iterator[str]:
    for name in formats.names():
        try:
            record = formats.get(name).record(1, values)
        except RowError as error:
            assert error.kind and error.detail
        else:
            assert record.row == 1
            yield name


@QUICK
@given(values=ROWS)
def test_any_values(values: dict[str, Any]) -> None:
    for name in try_formats(values):
        assert formats.get(name).matches(values)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.scenario(37)
def test_any_values_long(figure: Say) -> None:
    taken: list[int] = []

    @SLOW
    @given(values=ROWS)
    def attempt(values: dict[str, Any]) -> None:
        names = list(try_formats(values))
        assert all(formats.get(name).matches(values) for name in names)
        taken.append(len(names))

    attempt()
    assert len(taken) >= CASES
    figure(f"rows of any values: {len(taken):,} in {len(formats.names())} formats, only errors with advice")


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@QUICK
@given(rows=st.lists(ROWS, min_size=1, max_size=5))
def test_any_rows_through_a_file(tmp_path: Path, suffix: str, rows: list[dict[str, Any]]) -> None:
    text = json.dumps(rows) if suffix == ".json" else "\n".join(json.dumps(row) for row in rows)
    read(tmp_path / f"rows{suffix}", text.encode())
