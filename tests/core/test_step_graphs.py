"""Which shapes a run's batches are filled up to, and which are recorded; what a GPU records is in `tests/gpu`."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from core import step_graphs
from core.adapters import inject
from core.config import AdapterConfig, TrainConfig
from core.data.batching import Sampler
from core.data.packing import PackedBatch, Shape
from core.data.tokenized import TokenizedExample
from core.graph_shapes import OFTEN, ShapeCounts, shape_of
from core.micro_batches import MicroBatches
from core.step_graphs import BUSY, StepGraphs
from core.tasks.completion import Completion
from tests.core.toy import toy_llama
from tests.live import figure

ROWS, LONGEST = 16, 2048
STEPS = 375  # of a run


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
    made.enable(ROWS, [len(example.input_ids) for example in examples], STEPS, "")
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
    for batch in (small, large):
        assert not graphs.takes(batch), "it may not come often enough to be worth recording"
    graphs._is_busy_with(large.n_positions)
    assert graphs.takes(small) and BUSY not in graphs.in_words()
    assert not any(graphs.takes(large) for _ in range(OFTEN))
    known = small.n_positions, large.n_positions
    graphs.takes(next(each for each in batches_of(graphs, examples) if each.n_positions not in known))
    assert not any(graphs.takes(large) for _ in range(OFTEN)), "another came between: it would need memory beside"
    assert graphs.takes(large)


class Replayed:
    """What stands for a recorded graph here: replaying it is to run the static batch, with attention by its bounds."""

    def __init__(self, graphs: StepGraphs, static: PackedBatch, trained: int) -> None:
        self.graphs, self.static = graphs, static
        self.recorded = step_graphs._Recorded(
            self, static, torch.tensor(1.0 / trained), torch.zeros((), dtype=torch.float64)
        )

    def replay(self) -> None:
        layout = self.static.layout
        assert layout.bounds is not None
        lengths = tuple(length for length in layout.bounds.diff().tolist() if length)
        batch = replace(self.static, layout=replace(layout, lengths=lengths))
        self.recorded.loss.copy_(self.graphs._pass(batch, self.recorded.scale))


@pytest.fixture
def recording(graphs: StepGraphs, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Has shapes recorded without a GPU; lists them."""
    made: list[tuple[int, ...]] = []

    def first(self: StepGraphs, key: tuple[int, ...], batch: PackedBatch, trained: int) -> Tensor:
        made.append(key)
        self._recorded[key] = Replayed(self, batch._with(Tensor.clone), trained).recorded
        return self.run(batch, trained)

    monkeypatch.setattr(StepGraphs, "_first", first)
    return made


def test_a_batch_is_filled_up_to_a_recorded_one_that_is_little_larger(
    graphs: StepGraphs, recording: list[tuple[int, ...]]
) -> None:
    """With the loss and the gradients of what it was."""
    model = graphs.model.double()
    inject(model, AdapterConfig(r=2, lora_alpha=4))
    graphs.task.bind(model, TrainConfig())
    graphs.train([parameter for parameter in model.parameters() if parameter.requires_grad])
    graphs.batches.shape = Shape(8, 8, 6, 24)
    draw = random.Random(0)
    rows = [
        TokenizedExample(
            tuple(draw.randrange(3, 60) for _ in range(size)), (False,) * (size - size // 2) + (True,) * (size // 2), 1
        )
        for size in (20, 24, 17, 9)
    ]
    large, small, tiny = (graphs.batches.batch(rows[:count]) for count in (4, 3, 2))
    assert not graphs.takes(large) and graphs.takes(large)
    graphs.run(large, 1)
    assert recording == [shape_of(large)]
    assert small.n_positions < large.n_positions and graphs.has(small) and graphs.takes(small)
    assert graphs.computed(small) == large.n_positions
    assert not graphs.has(tiny), "that would be mostly filling"
    model.zero_grad()
    found = graphs.run(small, 7)
    gradients = [parameter.grad.clone() for parameter in graphs.parameters if parameter.grad is not None]
    model.zero_grad()
    with graphs.task.computing(model, small):
        wanted = graphs.task.loss_sum(model, small)
    (wanted / 7).backward()
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-6, atol=0)
    for one, parameter in zip(gradients, graphs.parameters, strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-7)  # norms and the scale are in float32
    graphs._is_busy_with(large.n_positions)
    assert graphs.has(large) and not graphs.has(small), "a busy GPU would compute the filling, too"


def test_a_few_graphs_serve_most_steps_of_three_epochs(
    graphs: StepGraphs, recording: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Replayed, "replay", lambda self: None)
    draw = random.Random(2)
    lengths = [min(LONGEST, max(16, int(draw.lognormvariate(5.3, 0.8)))) for _ in range(2000)]
    rows = [TokenizedExample((7,) * size, (False,) * (size - size // 2) + (True,) * (size // 2), 1) for size in lengths]
    sampler, replayed, steps = Sampler(lengths, ROWS, seed=0), 0, STEPS
    computed = tokens = 0
    for _ in range(steps):
        batch = graphs.batches.batch([rows[row] for row in sampler.next_rows()])
        replayed += graphs.has(batch)
        if graphs.takes(batch):
            graphs.run(batch, 1)
        computed, tokens = computed + graphs.computed(batch), tokens + batch.n_tokens
    filling = 1 - tokens / computed
    figure(f"{len(recording)} graphs, {replayed / steps:.0%} of the steps replayed, {filling:.1%} filling")
    assert len(recording) < 20 and replayed > 0.7 * steps and filling < 0.06


@pytest.mark.parametrize(("shapes", "is_due"), [
    ("a", False), ("aa", True), ("ab", False), ("abababa", True),
    ("abcdefghijka", False),  # once in eleven of 20: eight more are not likely to have it twice
    ("aabbccddeeaa", True),  # three times, and at that rate twice more
])  # fmt: skip
def test_what_is_likely_to_come_again_is_recorded(shapes: str, is_due: bool) -> None:
    run, found = ShapeCounts(batches=20), False
    for shape in shapes:
        run.pass_by()
        found = run.is_due((ord(shape),), is_busy=False)
    assert found == is_due


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
    graphs.enable(ROWS, [len(example.input_ids) for example in examples], STEPS, "")
    assert BUSY in graphs.in_words() and graphs.batches.shape == Shape()
    batch = graphs.batches.batch(examples[:ROWS])
    assert [graphs.takes(batch) for _ in range(OFTEN + 1)] == [False] * OFTEN + [True]
