"""`python -m tests.bench.tasks [CASE ...]`: train and evaluate through the studio's jobs, and keep the figures.

The cases that are named replace their rows in assets/bench/tasks.json; the others stay as they were measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from studio.service import Studio
from studio.views import JobView
from tests.bench.record import FOLDER, Result
from tests.bench.tasks.cases import CASES, Case, Rows, divided
from tests.bench.tasks.goals import Found, goals

TITLE = "What every task learns, through the studio's jobs"
NOTES = [
    "start: the base on the held-out rows; for classifiers, whose head is new, on the rows that the run itself held "
    "out. after: the mean over the seeds, lowest and highest beside it.",
    "sentiment is trained with the settings that a new user finds in the form. wry is the harder set, whose reviews "
    "say what they mean between the lines.",
]
Scores = Mapping[str, Any]


def main() -> None:
    """Run the cases that are named, or all."""
    parser = argparse.ArgumentParser(prog="tests.bench.tasks")
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="left out, all")
    for name in parser.parse_args().cases or list(CASES):
        measured = run(name, CASES[name])
        rows = [row for row in _kept() if row["case"] != name] + measured
        rows.sort(key=lambda row: list(CASES).index(row["case"]))
        Result("tasks", TITLE, rows, goals(rows), NOTES).publish()


def _kept() -> list[Found]:
    path = FOLDER / "tasks.json"
    found: list[Found] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return [row for row in found if row["case"] in CASES]


def run(name: str, case: Case) -> list[Found]:
    """One case, every seed in a workspace of its own."""
    model, started = case.model(), time.monotonic()
    trained_on, tested_on = divided(case.rows(), case.test_every)
    runs = [_run(case, seed, model, trained_on, tested_on) for seed in case.seeds]
    minutes = (time.monotonic() - started) / 60 / len(runs)
    tested = {"rows_tested": len(tested_on), "seeds": len(runs), "minutes_a_run": round(minutes, 1)}
    return [{"case": name, **_figures(figure, runs), **tested} for figure in ("loss", *case.figures)]


def _run(case: Case, seed: int, model: Path, trained_on: Rows, tested_on: Rows) -> tuple[Scores, Scores]:
    with tempfile.TemporaryDirectory() as scratch:
        files = _file(scratch, "train", trained_on), _file(scratch, "test", tested_on)
        studio = Studio(Path(scratch) / "workspace")
        try:
            return _measure(studio, replace(case, config=replace(case.config, seed=seed)), model, *files)
        finally:
            studio.close()


def _figures(figure: str, runs: Sequence[tuple[Scores, Scores]]) -> Found:
    before = [start[figure] for start, _ in runs if figure in start]
    after = [float(end[figure]) for _, end in runs]
    start = sum(before) / len(before) if before else None
    mean = sum(after) / len(after)
    return {"figure": figure, "start": start, "after": mean, "lowest": min(after), "highest": max(after)}


def _measure(studio: Studio, case: Case, folder: Path, train: Path, test: Path) -> tuple[Scores, Scores]:
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
