"""Padding by length, batches that hold every row once an epoch, and a sampler that can go on anywhere."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.batching import IGNORED, Sampler, collate
from core.data.tokenized import TokenizedExample

PAD = 2


def example(length: int, trained: int, row: int = 1) -> TokenizedExample:
    """An example whose tokens are all the pad token, the case that hides end tokens elsewhere."""
    mask = [False] * (length - trained) + [True] * trained
    return TokenizedExample((PAD,) * length, tuple(mask), row)


def test_padding_goes_by_length_even_where_pad_is_the_end_token() -> None:
    batch = collate([example(3, 2), example(5, 1)], pad_id=PAD)
    assert batch.input_ids.tolist() == [[PAD] * 5] * 2
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.labels.tolist() == [[IGNORED, PAD, PAD, IGNORED, IGNORED], [IGNORED] * 4 + [PAD]]
    assert (batch.n_trained, batch.n_tokens) == (3, 8)
    assert batch.to("cpu").labels.equal(batch.labels)


def test_trained_counts_the_terms_of_the_loss() -> None:
    batch = collate([example(4, 3), example(6, 5), example(2, 1)], pad_id=0)
    assert int((batch.labels[:, 1:] != IGNORED).sum()) == batch.n_trained == 9


sizes = st.tuples(st.lists(st.integers(1, 400), min_size=1, max_size=200), st.integers(1, 40))


@given(sizes, st.integers(0, 2**31 - 1))
@settings(max_examples=100, deadline=None)
def test_every_row_once_an_epoch(case: tuple[list[int], int], seed: int) -> None:
    lengths, batch_size = case
    sampler = Sampler(lengths, batch_size, seed)
    for epoch in range(2):
        assert sampler.epoch == epoch
        steps = [sampler.next_rows() for _ in range(sampler.steps_per_epoch)]
        assert Counter(row for step in steps for row in step) == Counter(range(len(lengths)))
        assert all(len(step) == batch_size for step in steps[:-1])
        assert all(lengths[one] >= lengths[other] for step in steps for one, other in pairwise(step))


@given(sizes, st.integers(0, 100), st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_resume_goes_on_with_the_same_steps(case: tuple[list[int], int], seed: int, before: int) -> None:
    lengths, batch_size = case
    first = Sampler(lengths, batch_size, seed)
    for _ in range(before):
        first.next_rows()
    second = Sampler(lengths, batch_size, seed)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [first.next_rows() for _ in range(20)] == [second.next_rows() for _ in range(20)]


def padding(lengths: list[int], steps: list[list[list[int]]]) -> float:
    padded = sum(len(rows) * max(lengths[row] for row in rows) for step in steps for rows in step)
    return 1 - sum(lengths) / padded


def test_grouping_by_length_saves_most_of_the_padding_and_stays_random() -> None:
    draw = random.Random(1)
    lengths = [max(8, int(draw.lognormvariate(5, 0.8))) for _ in range(2000)]
    sampler = Sampler(lengths, batch_size=16, seed=3)
    together = [[sampler.next_rows() for _ in range(sampler.steps_per_epoch)] for _ in range(2)]
    quarters = [[step[at : at + 4] for at in range(0, len(step), 4)] for step in together[0]]
    shuffled = draw.sample(range(2000), 2000)
    plain = [[shuffled[at : at + 4]] for at in range(0, 2000, 4)]
    assert padding(lengths, quarters) < 0.12 < 0.35 < padding(lengths, plain)
    pairs = [{pair for rows in epoch for pair in combinations(sorted(rows), 2)} for epoch in together]
    assert len(pairs[0] & pairs[1]) < 0.15 * len(pairs[0])
    means = [sum(lengths[row] for row in rows) / len(rows) for rows in together[0]]
    climbs = sum(after > before for before, after in pairwise(means)) / len(means)
    assert 0.35 < climbs < 0.65  # neither from short to long nor the other way


def test_seeds_and_epochs_differ() -> None:
    lengths = [10] * 64
    one, other = Sampler(lengths, 8, seed=1), Sampler(lengths, 8, seed=2)
    first_epoch = [one.next_rows() for _ in range(8)]
    assert first_epoch != [one.next_rows() for _ in range(8)]
    assert first_epoch != [other.next_rows() for _ in range(8)]


def test_the_order_is_the_same_on_every_machine() -> None:
    sampler = Sampler([3, 1, 4, 1, 5, 9, 2, 6, 5, 3], batch_size=4, seed=42)
    assert [sampler.next_rows() for _ in range(3)] == [[0, 9, 6, 3], [5, 7, 4, 2], [8, 1]]


@pytest.mark.parametrize(
    "state", [{"epoch": -1, "position": 0}, {"epoch": 0, "position": 3}, {"epoch": 0, "position": -1}]
)
def test_a_state_of_another_dataset_is_refused(state: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="no step"):
        Sampler([1] * 10, 4, seed=0).load_state_dict(state)


def test_nothing_to_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="needs rows"):
        Sampler([], 4, seed=0)
