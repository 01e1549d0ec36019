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

QUALITIES = {
    "tickets": ("loss", "valid_json", "named_fields", "exact_match"),
    "sentiment": ("loss", "accuracy"),
}


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

    variant: str
    title: str
    rate: float
    parameters: int  # that train at the end
    bytes: int  # of the adapter's weights, as saved
    quality: dict[str, Spread] = field(default_factory=dict)
    step_seconds: float | None = None
    peak_memory: int | None = None
    device: str = ""

    @property
    def loss(self) -> Spread:
        """Mean -log p on the held-out rows: the finest measure of both tasks."""
        return self.quality["loss"]


def rows_of(results: Path, task: str) -> dict[str, Row]:
    """The variants that have runs that count, the best first."""
    runs, costs = read(results / f"{task}.jsonl"), {run["variant"]: run for run in read(results / f"{task}-cost.jsonl")}
    own = {name: [run for run in runs if run["variant"] == name] for name in VARIANTS}
    found = [
        _row(name, done, costs.get(name, {}), task)
        for name, done in own.items()
        if any(run["seed"] == 0 for run in done) and any("loss" in run for run in counting(done))
    ]
    return {row.variant: row for row in sorted(found, key=lambda row: row.loss.mean)}


def _row(name: str, done: Sequence[Run], cost: Run, task: str) -> Row:
    runs = [run for run in counting(done) if "loss" in run]
    return Row(
        variant=name,
        title=VARIANTS[name].title,
        rate=best_rate(done),
        parameters=round(statistics.fmean(run["parameters"] for run in runs)),
        bytes=round(statistics.fmean(run["bytes"] for run in runs)),
        quality={measure: Spread(tuple(run[measure] for run in runs)) for measure in QUALITIES[task]},
        step_seconds=cost.get("step_seconds"),
        peak_memory=cost.get("peak_memory_bytes"),
        device=cost.get("device", ""),
    )
