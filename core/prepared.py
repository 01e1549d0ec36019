"""The batches of the next step, made on a thread of their own while the device computes the current one."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from core.data.augmentation import Augment
from core.data.packing import PackedBatch
from core.micro_batches import MicroBatches


@dataclass(frozen=True)
class Divided:
    """A step's rows by micro-batch, and the batches."""

    parts: list[list[int]]
    batches: list[Any]
    trained: int  # terms of the loss in all of them
    tokens: int  # without padding


class Prepared:
    """Makes the batches of steps, one step ahead when it is told of it."""

    def __init__(self, examples: Sequence[Any], micro_batches: MicroBatches, pins: bool) -> None:
        self.examples, self.micro_batches, self.pins = examples, micro_batches, pins
        self.augment: Augment | None = None  # changes examples at random, each time they are trained on
        self.hits = 0  # steps whose batches were there already
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._key: Any = None
        self._ahead: Future[Divided] | None = None

    def look_ahead(self, rows: Sequence[int], step: int) -> None:
        """Begin with the batches of these rows, for the step after `step` others."""
        self._key = self._settings(rows, step)
        self._ahead = self._thread.submit(self._make, rows, step)

    def of(self, rows: Sequence[int], step: int) -> Divided:
        """The batches of these rows, for the step after `step` others; ready or made now."""
        if self._ahead is None or self._key != self._settings(rows, step):  # such as smaller batches, as memory ran out
            return self._make(rows, step)
        self.hits += 1
        return self._ahead.result()

    def _settings(self, rows: Sequence[int], step: int) -> Any:
        batches = self.micro_batches
        return tuple(rows), step, batches.rows, batches.tokens, batches.shape, batches.shares_prefix

    def _make(self, rows: Sequence[int], step: int) -> Divided:
        parts = self.micro_batches.divide(self.examples, rows)
        made = [self.micro_batches.batch([self._example(row, step) for row in part]) for part in parts]
        examples = [self.examples[row] for row in rows]
        return Divided(
            parts,
            [each.pinned() if self.pins and isinstance(each, PackedBatch) else each for each in made],
            sum(example.n_trained for example in examples),
            sum(len(example.input_ids) for example in examples),
        )

    def _example(self, row: int, step: int) -> Any:
        """An example, changed in a way that the augmentation's seed, the step and the row alone decide."""
        example = self.examples[row]
        return example if self.augment is None else self.augment(example, step, row)
