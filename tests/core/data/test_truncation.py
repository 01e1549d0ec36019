"""Cutting examples, and the length that is chosen when none is given."""

from __future__ import annotations

import numpy as np
import pytest

from core.data.tokenized import TokenizedExample, TokenTable
from core.data.truncation import choose_max_length, truncate
from core.errors import DatasetError


def example(prompt: int, answer: int, row: int) -> TokenizedExample:
    return TokenizedExample(tuple(range(prompt + answer)), (False,) * prompt + (True,) * answer, row)


@pytest.mark.parametrize(
    ("lengths", "limit", "chosen"),
    [([10], 0, 64), ([64], 0, 64), ([65], 0, 128), ([10] * 99 + [5000], 0, 64), ([999] * 10, 512, 512), ([70], 99, 99)],
)  # fmt: skip
def test_choice(lengths: list[int], limit: int, chosen: int) -> None:
    assert choose_max_length(lengths, limit) == chosen


def test_choice_is_the_99th_percentile() -> None:
    lengths = np.random.default_rng(0).integers(1, 4000, size=997).tolist()
    expected = np.quantile(lengths, 0.99, method="inverted_cdf")
    assert choose_max_length(lengths) == int(np.ceil(expected / 64) * 64)


def test_cuts_the_end_and_leaves_out_what_has_nothing_to_train() -> None:
    kept, left_out = truncate(TokenTable.of([example(5, 5, row=1), example(8, 2, row=2), example(1, 1, row=3)]), 8)
    assert [(item.row, len(item.input_ids), item.n_trained) for item in kept] == [(1, 8, 3), (3, 2, 1)]
    assert left_out == [2]
    assert truncate(kept, 0) == (kept, [])


def test_nothing_left_at_all_is_an_error() -> None:
    with pytest.raises(DatasetError, match="within 8 tokens"):
        truncate(TokenTable.of([example(8, 2, row=2)]), 8)
