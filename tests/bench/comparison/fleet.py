"""Many training runs at the same time, each worker a process that loads the model once; results as JSON lines."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.comparison.search import Run, wanted

if TYPE_CHECKING:
    from tests.bench.comparison.runs import Bench

COST_PASSES = 2
_benches: list[Bench] = []  # of this process: one, made when it starts


class Fleet:
    """The workers of one task."""

    def __init__(self, task: str, model: Path | None, device: str | None, workers: int, is_fresh: bool = False) -> None:
        self.pool = ProcessPoolExecutor(
            workers,
            get_context("spawn"),
            initializer=_start,
            initargs=(task, model, device),
            max_tasks_per_child=1 if is_fresh else None,
        )

    def train(self, variants: Sequence[str], file: Path, ends: float) -> None:
        """All runs that `file` lacks, added to it as they end; none is started after `ends` (seconds since 1970)."""
        done = {name: [run for run in read(file) if run["variant"] == name] for name in variants}

        def more(name: str) -> Iterator[Future[Run]]:
            yield from (self.pool.submit(_train, name, rate, seed) for rate, seed in wanted(name, done[name]))

        def keep(name: str, run: Run) -> list[Future[Run]]:
            done[name].append(run)
            append(file, run)
            is_last_of_its_kind = not any(name == other for other in waiting.values())
            return list(more(name)) if is_last_of_its_kind else []

        waiting = {future: name for name in variants for future in more(name)}
        self._collect(waiting, keep, ends)

    def cost(self, variants: Sequence[str], file: Path, ends: float) -> None:
        """What a step of each variant costs, in two passes over all of them; those that `file` has are left out."""
        known = Counter(run["variant"] for run in read(file))
        missing = [name for number in range(COST_PASSES) for name in variants if known[name] <= number]
        waiting = {self.pool.submit(_cost, name): name for name in missing}

        def keep(name: str, run: Run) -> list[Future[Run]]:
            append(file, run)
            return []

        self._collect(waiting, keep, ends)

    def _collect(
        self, waiting: dict[Future[Run], str], keep: Callable[[str, Run], list[Future[Run]]], ends: float
    ) -> None:
        """Hand over results until nothing waits; what has not begun by `ends` is given up."""
        while waiting:
            left = ends - time.time()
            finished, _ = wait(waiting, left if 0 < left < math.inf else None, FIRST_COMPLETED)
            is_over = time.time() > ends
            for future in finished:
                name = waiting.pop(future)
                if (error := future.exception()) is not None:
                    _say(f"{name}: {type(error).__name__}: {error}")
                    continue
                waiting |= dict.fromkeys(keep(name, future.result()), name)
            if is_over:
                waiting = {future: name for future, name in waiting.items() if not future.cancel()}
        self.pool.shutdown()


def read(file: Path) -> list[Run]:
    """The lines of a results file; none when there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def append(file: Path, run: Run) -> None:
    """Add a line, and tell about it."""
    with file.open("a") as lines:
        lines.write(json.dumps(run) + "\n")
    _say(" ".join(f"{key}={value:.4g}" if isinstance(value, float) else str(value) for key, value in run.items()))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _start(task: str, model: Path | None, device: str | None) -> None:
    import warnings

    import torch
    from transformers.utils import logging

    from tests.bench.comparison.runs import Bench

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    _benches.append(Bench(task, model, device))


def _train(name: str, rate: float, seed: int) -> Run:
    return _benches[0].run(name, rate, seed)


def _cost(name: str) -> Run:
    return _benches[0].cost(name)
