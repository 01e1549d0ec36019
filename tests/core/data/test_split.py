"""The validation split: its size, its fairness, and copies that cannot straddle it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.records import Message, Record
from core.data.split import split_places


def chat(row: int, prompt: str, answer: str) -> Record:
    return Record(row, (Message("user", prompt), Message("assistant", answer)))


def split(records: list[Record], share: float, max_rows: int, seed: int) -> tuple[list[Record], list[Record]]:
    train, validation = split_places(records, share, max_rows, seed)
    return [records[place] for place in train], [records[place] for place in validation]


def rows(count: int) -> list[Record]:
    return [chat(row, f"question {row}", f"answer {row}") for row in range(1, count + 1)]


@pytest.mark.parametrize(
    ("count", "share", "max_rows", "held"),
    [(100, 0.05, 500, 5), (100, 0.0, 500, 0), (100, 0.5, 7, 7), (10, 0.01, 9, 1), (9, 0.01, 500, 0), (1, 0.5, 500, 0)],
)  # fmt: skip
def test_size(count: int, share: float, max_rows: int, held: int) -> None:
    train, validation = split(rows(count), share, max_rows, seed=0)
    assert (len(train), len(validation)) == (count - held, held)


prompts = st.lists(st.integers(0, 12), min_size=0, max_size=80)


@given(prompts, st.floats(0, 0.5), st.integers(0, 50), st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_nothing_is_lost_and_equal_prompts_stay_together(drawn: list[int], share: float, cap: int, seed: int) -> None:
    records = [chat(row, f"prompt {number}", f"answer {row}") for row, number in enumerate(drawn, start=1)]
    train, validation = split(records, share, cap, seed)
    assert sorted(train + validation, key=lambda record: record.row) == records
    assert train == sorted(train, key=lambda record: record.row)
    if len(set(drawn)) > 1:
        assert not {record.prompt for record in train} & {record.prompt for record in validation}
        assert train or not records
    if len(records) >= 10 and share > 0 and cap > 0:
        assert validation


def test_one_prompt_for_all_rows_still_gives_a_validation_set() -> None:
    records = [chat(row, "Write a joke.", f"joke {row // 2}") for row in range(40)]
    train, validation = split(records, 0.1, 500, seed=0)
    assert len(validation) == 4
    assert not {record.whole for record in train} & {record.whole for record in validation}


def test_rows_that_are_all_equal_are_all_trained() -> None:
    train, validation = split([chat(row, "a", "b") for row in range(20)], 0.5, 500, seed=0)
    assert (len(train), validation) == (20, [])


def test_seeds_differ_and_the_place_of_a_row_is_its_texts_alone() -> None:
    records = rows(200)
    first = {record.prompt for record in split(records, 0.1, 500, seed=1)[1]}
    assert first != {record.prompt for record in split(records, 0.1, 500, seed=2)[1]}
    assert first == {record.prompt for record in split(records[::-1], 0.1, 500, seed=1)[1]}


def test_the_same_in_another_process() -> None:
    code = (
        "from core.data.records import Record\nfrom core.data.split import split_places\n"
        "records = [Record(i, text=str(i)) for i in range(99)]\n"
        "import sys; sys.stdout.write(repr([records[place].row for place in split_places(records, .2, 50, 3)[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [record.row for record in split([Record(i, text=str(i)) for i in range(99)], 0.2, 50, 3)[1]]
    assert done.stdout == repr(here) and len(here) == 20


def test_turns_cannot_be_confused_with_each_other() -> None:
    one = Record(1, (Message("user", "a"), Message("user", "b"), Message("assistant", "c")))
    other = Record(2, (Message("user", "a user b"), Message("assistant", "c")))
    assert one.prompt != other.prompt
