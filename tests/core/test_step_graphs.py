"""Which shapes a run's batches are filled up to, and which are recorded; what a GPU records is in `tests/gpu`."""

from __future__ import annotations

import random

import pytest

from core import step_graphs
from core.data.packing import PackedBatch, Shape
from core.data.tokenized import TokenizedExample
from core.micro_batches import MicroBatches
from core.step_graphs import BUSY, OFTEN, USES, StepGraphs
from core.tasks.completion import Completion
from tests.core.toy import toy_llama

ROWS, LONGEST = 16, 2048


@pytest.fixture
def examples() -> list[TokenizedExample]:
    """Instruction data: log-normal lengths, the first half of each not trained."""
    draw = random.Random(1)
    lengths = [min(LONGEST, max(16, int(draw.lognormvariate(5.3, 0.8)))) for _ in range(640)]
    return [TokenizedExample((7,) * size, (False,) * (size - size // 2) + (True,) * (size // 2), 1) for size in lengths]


@pytest.fixture
def graphs(examples: list[TokenizedExample], monkeypatch: pytest.MonkeyPatch) -> StepGraphs:
    """As on a GPU whose memory would take batches several times as large as a step's."""
    task = Completion()
    made = StepGraphs(toy_llama(), task, MicroBatches(task, 0, ROWS, 16384))
    monkeypatch.setattr(StepGraphs, "_why_not", lambda self: "")
    made.enable(ROWS, [len(example.input_ids) for example in examples], "")
    return made


def batches_of(graphs: StepGraphs, examples: list[TokenizedExample]) -> list[PackedBatch]:
    return [graphs.batches.batch(examples[start : start + ROWS]) for start in range(0, len(examples), ROWS)]


def test_little_of_a_batch_is_filling_and_shapes_come_again(
    graphs: StepGraphs, examples: list[TokenizedExample]
) -> None:
    made = batches_of(graphs, examples)
    computed = sum(batch.n_positions for batch in made)
    assert 0.98 < sum(batch.n_tokens for batch in made) / computed < 1
    assert len({batch.n_positions for batch in made}) < len(made)


def test_what_the_gpu_is_busy_with_is_recorded_once_it_has_come_often(
    graphs: StepGraphs, examples: list[TokenizedExample]
) -> None:
    small, *_, large = sorted(batches_of(graphs, examples), key=lambda batch: batch.n_positions)
    for batch in (small, large) * USES:
        assert not graphs.takes(batch), "it may not come often enough to be worth recording"
    graphs._is_busy_with(large.n_positions)
    assert graphs.takes(small) and BUSY not in graphs.in_words()
    assert not any(graphs.takes(large) for _ in range(OFTEN))
    known = small.n_positions, large.n_positions
    graphs.takes(next(each for each in batches_of(graphs, examples) if each.n_positions not in known))
    assert not any(graphs.takes(large) for _ in range(OFTEN)), "another came between: it would need memory beside"
    assert graphs.takes(large)


def test_where_the_gpu_is_always_busy_nothing_is_filled_up(
    graphs: StepGraphs, examples: list[TokenizedExample]
) -> None:
    small = min(batches_of(graphs, examples), key=lambda batch: batch.n_positions)
    graphs._is_busy_with(small.n_positions)
    assert BUSY in graphs.in_words() and graphs.reason == "" and graphs.batches.shape == Shape()
    assert all(batch.n_positions == batch.n_tokens for batch in batches_of(graphs, examples))


def test_where_no_host_is_slower_than_its_gpu_nothing_is_measured(
    graphs: StepGraphs, examples: list[TokenizedExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_graphs, "MOST_WORK", 0)
    graphs.batches.shape = Shape()
    graphs.enable(ROWS, [len(example.input_ids) for example in examples], "")
    assert BUSY in graphs.in_words() and graphs.batches.shape == Shape()
    batch = graphs.batches.batch(examples[:ROWS])
    assert [graphs.takes(batch) for _ in range(OFTEN + 1)] == [False] * OFTEN + [True]
