"""Rows behind each other: where each lies, what is trained of it, and how little room is lost."""

from __future__ import annotations

import random
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.packing import IGNORED, Shape, divide, fill_up, pack, shared_prefix
from core.data.tokenized import TokenizedExample


def example(ids: list[int], trained: int, row: int = 1) -> TokenizedExample:
    return TokenizedExample(tuple(ids), (False,) * (len(ids) - trained) + (True,) * trained, row)


ROWS = [example([7, 8, 1, 2], 2), example([7, 8, 3], 1), example([7, 8, 4, 5, 6], 2)]


def test_positions_restart_and_no_example_is_predicted_from_the_one_before() -> None:
    batch = pack(ROWS, pad_id=0)
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 7, 8, 3, 7, 8, 4, 5, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]]
    assert batch.positions.tolist() == [1, 2, 5, 9, 10]
    assert batch.targets.tolist() == [1, 2, 3, 5, 6]
    assert batch.layout.lengths == (4, 3, 5)
    assert batch.layout.bounds is not None and batch.layout.bounds.tolist() == [0, 4, 7, 12]
    assert (batch.n_trained, batch.n_tokens, batch.layout.longest) == (5, 12, 5)


def test_a_shared_beginning_stands_there_once() -> None:
    assert shared_prefix(ROWS) == 1  # the second 8 predicts a trained token
    batch = pack(ROWS, 0, prefix=1)
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 8, 3, 8, 4, 5, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 1, 2, 1, 2, 3, 4]]
    assert batch.positions.tolist() == [1, 2, 4, 7, 8]
    assert batch.targets.tolist() == [1, 2, 3, 5, 6]
    assert (batch.layout.prefix, batch.layout.lengths, batch.n_tokens) == (1, (3, 2, 4), 12)


def test_what_may_be_shared() -> None:
    assert shared_prefix(ROWS[:1]) == 0
    assert shared_prefix([example([1, 2, 3, 4], 1), example([9, 2, 3, 4], 1)]) == 0
    assert shared_prefix([example([1, 2, 3], 1), example([1, 2, 3], 1)]) == 1
    assert shared_prefix([example([1, 2, 3], 0), example([1, 2, 3, 4, 5], 0)]) == 2  # each keeps a token of its own


def test_static_shapes_are_filled_with_what_is_not_trained() -> None:
    batch = pack(ROWS, pad_id=0, shape=Shape(multiple=16, trained_multiple=8, segments_multiple=6, longest=9))
    assert batch.input_ids.shape == batch.position_ids.shape == (1, 16)
    assert batch.input_ids[0, 12:].tolist() == [0] * 4
    assert batch.targets.tolist() == [1, 2, 3, 5, 6, IGNORED, IGNORED, IGNORED]
    assert batch.layout.bounds is not None and batch.layout.bounds.tolist() == [0, 4, 7, 12, 16, 16, 16]
    assert (batch.layout.lengths, batch.layout.longest) == ((4, 3, 5, 4), 9)
    assert (batch.n_trained, batch.n_tokens, batch.n_positions) == (5, 12, 16)
    assert torch.equal(batch.to("cpu").input_ids, batch.input_ids)


def test_a_batch_can_be_filled_up_further_by_an_example_of_its_own() -> None:
    static = Shape(multiple=2, trained_multiple=4, segments_multiple=6, longest=5)
    for rows in (ROWS, ROWS[:2]):  # 12 positions, and 7 that are filled up to 8
        batch = pack(rows, 0, static)
        filled = fill_up(batch, batch.n_positions + 4, 12 if rows == ROWS else 8, pad_id=9)
        assert filled.input_ids.tolist() == [[*batch.input_ids[0].tolist(), 9, 9, 9, 9]]
        assert filled.position_ids.tolist() == [[*batch.position_ids[0].tolist(), 0, 1, 2, 3]]
        assert filled.positions.tolist()[: len(batch.positions)] == batch.positions.tolist()
        assert filled.targets.tolist() == batch.targets.tolist() + [IGNORED] * 4
        assert filled.layout.lengths == (*batch.layout.lengths, 4) and filled.layout.longest == batch.layout.longest
        assert batch.layout.bounds is not None and filled.layout.bounds is not None
        lengths = filled.layout.bounds.diff().tolist()
        assert [length for length in lengths if length] == list(filled.layout.lengths)
        assert len(filled.layout.bounds) == len(batch.layout.bounds)
        assert (filled.n_trained, filled.n_tokens) == (batch.n_trained, batch.n_tokens)


def test_a_batch_of_which_all_is_trained_stays_one() -> None:
    batch = pack([example(list(range(10)), 9), example([1, 2], 1)], 0, Shape(1, 4, 4, 10))
    filled = fill_up(batch, 15, 15, pad_id=0)
    assert filled.positions.tolist() == list(range(15)) and filled.targets[12:].tolist() == [IGNORED] * 3


def test_where_nearly_all_is_trained_no_position_is_picked() -> None:
    batch = pack([example(list(range(600)), 599), example(list(range(9, 409)), 399)], pad_id=0)
    assert batch.positions.tolist() == list(range(1000)) and batch.n_trained == 998
    assert batch.targets.tolist() == [*range(1, 600), IGNORED, *range(10, 409), IGNORED]
    batch = pack([example(list(range(600)), 596)], pad_id=0)
    assert batch.positions.tolist() == list(range(3, 599)), "more than one in 256 is not trained"


def test_a_list_filled_up_to_the_whole_row_is_the_row() -> None:
    batch = pack([example([5, 6, 7, 8], 2)], pad_id=0, shape=Shape(multiple=8, trained_multiple=8))
    assert batch.positions.tolist() == list(range(8))
    assert batch.targets.tolist() == [IGNORED, 7, 8, *[IGNORED] * 5]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=64), st.integers(1, 700))
@settings(max_examples=100, deadline=None)
def test_every_row_goes_into_one_micro_batch_that_is_not_too_long(lengths: list[int], budget: int) -> None:
    parts = divide(range(len(lengths)), lengths, budget)
    assert Counter(row for part in parts for row in part) == Counter(range(len(lengths)))
    assert all(sum(lengths[row] for row in part) <= max(budget, *lengths) for part in parts)
    assert len(parts) <= 1 + 2 * sum(lengths) // max(budget, *lengths)  # no two could be one
    assert parts == divide(list(reversed(range(len(lengths)))), lengths, budget)


def test_ragged_rows_of_one_static_length_lose_less_than_two_percent() -> None:
    """Log-normal lengths as instruction data has them, 32 rows a step, micro-batches of at most 4,096 tokens."""
    draw = random.Random(3)
    tokens = room = 0
    for _ in range(50):
        lengths = [min(1024, max(16, int(draw.lognormvariate(5.5, 0.7)))) for _ in range(32)]
        parts = [sum(lengths[row] for row in part) for part in divide(range(32), lengths, 4096)]
        tokens += sum(lengths)
        room += len(parts) * (-(-max(parts) // 16) * 16)
    assert tokens / room >= 0.98
