"""`python -m tests.bench.tasks [CASE ...]`: train and evaluate through the studio's jobs, and print the figures."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio.service import Studio
from studio.views import JobView
from tests.bench.tasks.cases import CASES, Case, Rows, divided


def main() -> None:
    """Run the cases that are named, or all."""
    parser = argparse.ArgumentParser(prog="tests.bench.tasks")
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="left out, all")
    chosen = parser.parse_args().cases or list(CASES)
    print("| case | figure | start | after | rows tested | minutes |\n|---|---|---|---|---|---|")  # noqa: T201
    for name in chosen:
        run(name, CASES[name])


def run(name: str, case: Case) -> None:
    """One case, in a workspace of its own."""
    model, started = case.model(), time.monotonic()
    trained_on, tested_on = divided(case.rows(), case.test_every)
    with tempfile.TemporaryDirectory() as scratch:
        studio = Studio(Path(scratch) / "workspace")
        try:
            before, after = _measure(studio, case, model, _file(scratch, "train", trained_on),
                                     _file(scratch, "test", tested_on))  # fmt: skip
        finally:
            studio.close()
    minutes = (time.monotonic() - started) / 60
    for figure in ("loss", *case.figures):
        figures = [f"{scores[figure]:.3f}" if figure in scores else "-" for scores in (before, after)]
        print(f"| {name} | {figure} | {' | '.join(figures)} | {len(tested_on)} | {minutes:.1f} |", flush=True)  # noqa: T201


def _measure(
    studio: Studio, case: Case, folder: Path, train: Path, test: Path
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The figures on the test rows before and after; a classifier's before are those of the head it starts with."""
    added = _wait(studio, studio.add_model(str(folder)))
    model_id = str(added.result["model_id"])
    job = _wait(studio, studio.train(model_id, studio.add_dataset(train).id, case.config))
    tested = studio.add_dataset(test).id
    measured = _wait(studio, studio.evaluate(model_id, tested, [str(job.result["adapter_id"])])).result["scores"]
    return measured.get("base", job.result["scores"]["before"]), measured[str(job.result["adapter_id"])]


def _wait(studio: Studio, job: JobView) -> JobView:
    while not (now := studio.job(job.id)).is_over:
        time.sleep(1.0)
    if now.state != "succeeded":
        raise SystemExit(f"{now.kind} {now.state}: {now.error_what} {now.error_fix}\n{studio.log_tail(now.id)}")
    return now


def _file(folder: str, name: str, rows: Rows) -> Path:
    path = Path(folder) / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
