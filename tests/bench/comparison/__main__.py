"""The command line of the comparison; see the package's docstring."""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.comparison.variants import VARIANTS

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / ".cache" / "comparison"


def main() -> None:
    """Read the arguments and do what they say."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.comparison")
    parser.add_argument("what", choices=("run", "cost", "report"))
    parser.add_argument("task", nargs="?", choices=("tickets", "sentiment"), default="tickets")
    parser.add_argument("--variants", default="", help="comma-separated; all of the task's by default")
    parser.add_argument("--workers", type=int, default=1, help="variants trained at the same time")
    parser.add_argument("--model", type=Path, help="folder of the base model, instead of fetching it")
    parser.add_argument("--device", help="cuda or cpu; the best one by default")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no run after this long")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a worker's variant
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    if arguments.what == "report":
        from tests.bench.comparison.report import write_report

        write_report(arguments.results, ROOT / "assets" / "comparison")
    elif arguments.one:
        _work(arguments)
    else:
        _fan_out(arguments)


def _work(arguments: argparse.Namespace) -> None:
    import json
    import warnings

    from tests.bench.comparison.runs import Bench

    warnings.filterwarnings("ignore")
    bench = Bench(arguments.task, arguments.one, arguments.results, arguments.model, arguments.device)
    if arguments.what == "cost":
        with (arguments.results / f"{arguments.task}-cost.jsonl").open("a") as file:
            file.write(json.dumps(bench.cost()) + "\n")
    else:
        bench.run_all(time.time() + arguments.seconds)


def _fan_out(arguments: argparse.Namespace) -> None:
    """One process per variant: a fresh peak of memory, and a failure costs that variant alone."""
    chosen = arguments.variants.split(",") if arguments.variants else _all(arguments.task)
    workers = 1 if arguments.what == "cost" else arguments.workers
    ends = time.time() + arguments.seconds
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda variant: _start(variant, arguments, ends), chosen))


def _all(task: str) -> Sequence[str]:
    return [name for name, variant in VARIANTS.items() if task in variant.tasks]


def _start(variant: str, arguments: argparse.Namespace, ends: float) -> None:
    command = [sys.executable, "-m", "tests.bench.comparison", arguments.what, arguments.task, "--one", variant]
    command += ["--results", str(arguments.results), "--seconds", str(max(0.0, ends - time.time()))]
    command += ["--model", str(arguments.model)] if arguments.model else []
    command += ["--device", arguments.device] if arguments.device else []
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    said = "done" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["failed"])[-1]
    sys.stdout.write(f"{variant}: {said} ({time.time() - started:.0f} s)\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
