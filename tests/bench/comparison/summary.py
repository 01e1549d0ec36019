"""From the lines of the results to one row a variant: means and spreads over the seeds, sizes and costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.comparison.fleet import read
from tests.bench.comparison.search import Run, best_rate, counting
from tests.bench.comparison.variants import VARIANTS

QUALITIES = {  # the first one is what a task is judged by
    "tickets": ("loss", "valid_json", "named_fields", "exact_match"),
    "sentiment": ("accuracy", "loss"),
}
LOSS = "loss"  # mean -log p on the held-out rows: the only measure of which less is better
TEST_ROWS = {"tickets": 60, "sentiment": 150}


@dataclass(frozen=True)
class Spread:
    """A measure over the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """The sample's standard deviation; NaN for one value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return self.deviation / math.sqrt(len(self.values))


@dataclass(frozen=True)
class Row:
    """What is known of one variant on one task; None where it was not measured."""

    task: str
    variant: str
    title: str
    rate: float
    parameters: int  # that train at the end
    bytes: int  # of the adapter's weights, as saved
    quality: dict[str, Spread] = field(default_factory=dict)
    step_seconds: float | None = None
    passes: int = 0  # in which steps were timed
    peak_memory: int | None = None
    device: str = ""

    @property
    def measure(self) -> str:
        """What its task is judged by."""
        return QUALITIES[self.task][0]

    @property
    def main(self) -> Spread:
        """That measure over the seeds."""
        return self.quality[self.measure]

    @property
    def cost(self) -> float:
        """The mean of that measure so that less is better."""
        return self.main.mean if self.measure == LOSS else -self.main.mean


def error_between(one: Row, other: Row) -> float:
    """The standard error of the difference of two variants.

    That of the seeds, and of a share also that of the test rows, as if each variant had answered rows of its own.
    """
    error = math.hypot(one.main.error, other.main.error)
    if one.measure == LOSS:
        return error
    shares = (one.main.mean, other.main.mean)
    return math.hypot(error, *(math.sqrt(share * (1 - share) / TEST_ROWS[one.task]) for share in shares))


def rows_of(results: Path, task: str) -> dict[str, Row]:
    """The variants that have runs that count, the best first."""
    runs, costs = read(results / f"{task}.jsonl"), read(results / f"{task}-cost.jsonl")
    own = {name: [run for run in runs if run["variant"] == name] for name in VARIANTS}
    found = [
        _row(name, done, [cost for cost in costs if cost["variant"] == name], task)
        for name, done in own.items()
        if any(run["seed"] == 0 for run in done) and any("loss" in run for run in counting(done))
    ]
    return {row.variant: row for row in sorted(found, key=lambda row: row.cost)}


def _row(name: str, done: Sequence[Run], costs: Sequence[Run], task: str) -> Row:
    """A step's time is the shorter of the passes, since whoever is measured first pays for warming up."""
    runs = [run for run in counting(done) if "loss" in run]
    steps = [cost["step_seconds"] for cost in costs]
    return Row(
        task=task,
        variant=name,
        title=VARIANTS[name].title,
        rate=best_rate(done),
        parameters=round(statistics.fmean(run["parameters"] for run in runs)),
        bytes=round(statistics.fmean(run["bytes"] for run in runs)),
        quality={measure: Spread(tuple(run[measure] for run in runs)) for measure in QUALITIES[task]},
        step_seconds=min(steps, default=None),
        passes=len(steps),
        peak_memory=max((cost["peak_memory_bytes"] for cost in costs), default=None),
        device=costs[0]["device"] if costs else "",
    )
