"""A long history: what the page needs stays quick with a thousand jobs and a million points, and memory stays flat."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import gradio as gr
import psutil
import pytest
from sqlalchemy import text

from core.config import TrainConfig, to_dict
from studio.commands.training import outcome
from studio.curves import Curves
from studio.queue import Queue
from studio.service import Studio
from studio.tables import JobRow, MetricRow
from studio.views import MetricPoint
from tests.live import LiveStudio
from tests.scenarios.plugin import Say
from ui.i18n import Translator
from ui.tabs.jobs import JobsTab

NAMES = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second")
SPEC = {"model_id": "m", "dataset_id": "d", "train": to_dict(TrainConfig())}


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    opened = Studio(tmp_path)
    yield opened
    opened.close()


def history(studio: Studio, jobs: int, steps: int, longest: int) -> str:
    """Finished trainings of `steps` steps each, and a last one of `longest`; returns the id of that one."""
    about = {"kind": "train", "spec": SPEC, "state": "succeeded"}
    rows = [JobRow(id=f"{number:014d}", name=f"run {number}", **about) for number in range(jobs)]  # ids in order
    with studio._database.writing() as session:
        session.add_all(rows)
        session.flush()
        for place, row in enumerate(rows):
            count = longest if place == jobs - 1 else steps
            points = [
                {"job_id": row.id, "name": name, "step": step, "value": 1 / step}
                for name in NAMES
                for step in range(1, count + 1)
            ]
            session.execute(MetricRow.__table__.insert(), points)  # type: ignore[attr-defined]
    return rows[-1].id


def quickest(work: Callable[[], object]) -> float:
    """Seconds of processor time, best of five: all of it is spent in this process, and nobody else's load counts."""
    times = []
    for _ in range(5):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


@pytest.mark.slow
@pytest.mark.scenario(21)
@pytest.mark.timeout(900)
def test_a_thousand_jobs_and_a_million_points(studio: Studio, figure: Say) -> None:
    longest = 100_000
    job_id = history(studio, 1000, 101, longest)  # 504,495 points in short runs, and half a million in one
    with studio._database.reading() as session:
        points = session.execute(text("SELECT count(*) FROM metrics")).scalar() or 0
    with gr.Blocks():
        tab = JobsTab(studio, Translator("en"))
        tab.layout()
    tab_s = quickest(lambda: tab.live(""))
    list_s = quickest(lambda: studio.jobs(limit=1000))
    curve_s = quickest(lambda: studio.metrics(job_id))
    size = sum(path.stat().st_size for path in studio.workspace.root.glob("studio.db*")) / 1e6
    assert points >= 1_000_000
    assert tab_s <= 0.3 and curve_s <= 0.5 and size <= 200, (tab_s, list_s, curve_s, size)
    assert max(len(curve) for curve in studio.metrics(job_id).values()) <= 1000
    figure(
        f"1,000 jobs, {points:,} points: jobs tab {1000 * tab_s:.0f} ms, curves of {longest:,} steps "
        f"{1000 * curve_s:.0f} ms of processor time, database {size:.0f} MB"
    )


def test_thinning_keeps_spikes_gaps_and_the_end(studio: Studio) -> None:
    job_id = history(studio, 1, 1, 10_000)
    with studio._database.writing() as session:
        for step, value in ((1234, 99.0), (5678, -5.0), (7777, None)):
            session.get_one(MetricRow, (job_id, "loss", step)).value = value
    curve = studio.metrics(job_id, max_points=400)["loss"]
    assert len(curve) <= 400 and [point.step for point in curve] == sorted({point.step for point in curve})
    assert {MetricPoint(1234, 99.0), MetricPoint(5678, -5.0), MetricPoint(10_000, 1e-4)} <= set(curve)
    assert [point.step for point in curve if point.value != point.value] == [7777]
    whole = studio.metrics(job_id, max_points=10_000)["grad_norm"]
    assert [point.step for point in whole] == list(range(1, 10_001))


def test_the_usual_speed_is_the_median_of_the_newest_run(studio: Studio) -> None:
    curves = Curves(studio._database)
    assert curves.usual_speed("m") is None
    history(studio, 2, 3, 5)
    assert curves.usual_speed("m") == pytest.approx(1 / 3) and curves.usual_speed("other") is None


def test_a_run_that_ended_above_where_it_began_is_called_worse(studio: Studio) -> None:
    job_id = history(studio, 1, 1, 5)
    run = replace(studio.job(job_id), best_eval_loss=3.0, best_step=5)
    assert studio.untrained_loss(job_id) is None and "warning" not in outcome(studio, run)
    with studio._database.writing() as session:
        session.add(MetricRow(job_id=job_id, name="eval_loss", step=0, value=2.0))
    assert studio.untrained_loss(job_id) == 2.0
    assert "was 2.0000 before training" in outcome(studio, run)["warning"]
    assert "warning" not in outcome(studio, replace(run, best_eval_loss=2.0))


@pytest.mark.slow
@pytest.mark.scenario(22)
@pytest.mark.timeout(3600)
def test_a_soak_of_tiny_jobs(tmp_path: Path, figure: Say) -> None:
    """`LORA_STUDIO_SOAK_JOBS` makes it longer or shorter; 2,000 take about ten minutes on two idle cores."""
    jobs = int(os.environ.get("LORA_STUDIO_SOAK_JOBS", "2000"))
    with LiveStudio(tmp_path) as live:
        Queue(live.database).share_devices(3)
        with live.database.writing() as session:
            spec = {"steps": 1, "seconds_per_step": 0}
            tiny = [JobRow(kind="selftest", name=f"{n}", spec=spec, memory_bytes=1) for n in range(jobs)]
            session.add_all(tiny)
        scheduler = psutil.Process(live.start().pid)
        warm = jobs // 5

        def done() -> int:
            return live.store.count("succeeded")

        live.until(lambda: done() >= warm, timeout_s=3000)
        before = scheduler.memory_info().rss, scheduler.num_fds()
        zombies = 0
        while done() < jobs:
            zombies = max(zombies, sum(map(is_zombie, scheduler.children())))
            time.sleep(0.5)
        live.until(lambda: not scheduler.children())
        after = scheduler.memory_info().rss, scheduler.num_fds()
        assert {job.attempt for job in live.store.list(limit=jobs)} == {1}
    growth = after[0] / before[0] - 1
    assert growth <= 0.05 and after[1] <= before[1] and zombies <= 3, (growth, before, after, zombies)
    figure(f"{jobs:,} jobs: scheduler's memory {growth:+.1%} after the first fifth, no descriptor more, 0 zombies left")


def is_zombie(process: psutil.Process) -> bool:
    """True for a process that has ended and that nobody has waited for; one that is gone altogether is none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return False
