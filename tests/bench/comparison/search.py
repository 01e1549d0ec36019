"""Which training runs of a variant are still to do: the search for its learning rate, then the seeds that count.

The rate is picked by the validation loss of one seed on a grid that is the same for every method: from the method's own
suggestion uphill until both neighbours are worse. The runs that count have other seeds, and so other splits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from core.methods import methods
from tests.bench.comparison.variants import VARIANTS

GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SEEDS = (1, 2, 3)
SEARCH_SEED = 0
USUAL_RATE = 1e-3  # of LoRA on models this small; the other methods say theirs in LoRA's

Run = dict[str, Any]  # a line of the results


def wanted(variant: str, done: Sequence[Run]) -> list[tuple[float, int]]:
    """The next runs as (learning rate, seed); none when all are done. `done` are the variant's own."""
    seen = {run["learning_rate"]: run["validation_loss"] for run in done if run["seed"] == SEARCH_SEED}
    if (rate := _next_rate(variant, seen)) is not None:
        return [(rate, SEARCH_SEED)]
    best = best_rate(done)
    had = {run["seed"] for run in done if run["learning_rate"] == best}
    return [(best, seed) for seed in SEEDS if seed not in had]


def best_rate(done: Sequence[Run]) -> float:
    """The learning rate with the lowest validation loss in the search."""
    searched = [run for run in done if run["seed"] == SEARCH_SEED]
    return float(min(searched, key=lambda run: float(run["validation_loss"]))["learning_rate"])


def counting(done: Sequence[Run]) -> list[Run]:
    """The runs that count: those of the seeds, at the learning rate that was found."""
    return [run for run in done if run["seed"] in SEEDS and run["learning_rate"] == best_rate(done)]


def _next_rate(variant: str, seen: dict[float, float]) -> float | None:
    if not seen:
        about, config = methods.get(VARIANTS[variant].method), VARIANTS[variant].adapter(())
        usual = about.rate_factor(config) * USUAL_RATE
        return min(GRID, key=lambda rate: abs(math.log(rate / usual)))
    place = GRID.index(min(seen, key=seen.__getitem__))
    around = [GRID[beside] for beside in (place + 1, place - 1) if 0 <= beside < len(GRID)]
    return next((rate for rate in around if rate not in seen), None)
