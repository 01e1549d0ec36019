"""The command line of the comparison; see the package's docstring."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from tests.bench.comparison.fleet import Fleet
from tests.bench.comparison.variants import VARIANTS

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "assets" / "comparison"


def main() -> None:
    """Read the arguments and do what they say."""
    arguments = _parser().parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    if arguments.what == "report":
        from tests.bench.comparison.report import write_report

        return write_report(arguments.results, DOCS)
    task, ends = arguments.task, time.time() + arguments.seconds
    variants = arguments.variants.split(",") if arguments.variants else _all(task)
    if arguments.what == "run":
        fleet = Fleet(task, arguments.model, arguments.device, arguments.workers)
        return fleet.train(variants, arguments.results / f"{task}.jsonl", ends)
    is_cpu = arguments.device == "cpu"  # where a process's peak memory never falls, so that each variant needs its own
    fleet = Fleet(task, arguments.model, arguments.device, 1, is_fresh=is_cpu)
    fleet.cost(variants, arguments.results / f"{task}-cost.jsonl", ends)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.comparison")
    parser.add_argument("what", choices=("run", "cost", "report"))
    parser.add_argument("task", nargs="?", choices=("tickets", "sentiment"), default="tickets")
    parser.add_argument("--variants", default="", help="comma-separated; all of the task's by default")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time")
    parser.add_argument("--model", type=Path, help="folder of the base model, instead of fetching it")
    parser.add_argument("--device", help="cuda or cpu; the best one by default")
    parser.add_argument("--results", type=Path, default=DOCS, help="folder of the results; where the report is too")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no run after this long")
    return parser


def _all(task: str) -> list[str]:
    return [name for name, variant in VARIANTS.items() if task in variant.tasks]


if __name__ == "__main__":
    main()
