"""Reloads, a second tab and an impatient click while a real job trains: the page is back at once, nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from studio.db import Database
from studio.jobs import JobStore
from studio.workspace import Workspace
from tests import toy
from tests.e2e.conftest import RunningStudio, serving
from tests.e2e.test_main_job import fill, open_page, open_tab, train_jobs
from tests.scenarios.plugin import Say

GOAL_S = 1.0
# True once the page shows the job, no older than it was before, with its curve: milliseconds since the page was asked
# for, by the browser's own clock.
IS_BACK = """([id, step]) => {
  const card = document.querySelector('#job-progress');
  const shown = parseInt(card?.querySelector('dd')?.innerText.replaceAll(',', ''));
  const drawn = document.querySelector('#job-curve path.plot-train');
  return card?.innerText.includes(id) && shown >= step && drawn ? performance.now() : 0;
}"""


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[RunningStudio]:
    """A studio with a toy model, whose steps take milliseconds."""
    with serving(tmp_path / "workspace") as running:
        running.cli("models", "add", str(toy.save_model(tmp_path / "model")), "--name", "toy")
        running.cli("datasets", "add", str(toy.write_dataset(tmp_path / "animals.jsonl", rows=2000)))
        yield running


def is_back(page: Any, job_id: str, step: int) -> float:
    """Seconds from a navigation until the job is on the page, at `step` or later."""
    shown = page.wait_for_function(IS_BACK, arg=[job_id, step], polling=20)
    return float(shown.json_value()) / 1000


def test_more_pages_open_than_a_browser_has_connections(page: Any, studio: RunningStudio) -> None:
    for _ in range(8):
        another = page.context.new_page()
        open_page(another, studio.url)
    open_tab(another, "System")
    another.wait_for_function("document.querySelector('#system-devices').innerText.includes('iB')")


@pytest.mark.timeout(1200)
@pytest.mark.scenario(23)
@pytest.mark.parametrize("reloads", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_reloads_lose_nothing(page: Any, studio: RunningStudio, reloads: int, figure: Say) -> None:
    open_page(page, studio.url)
    open_tab(page, "Train")
    page.wait_for_function("window.loraStudioRestored")
    fill(page, "train-epochs", "1000")
    page.wait_for_function("document.querySelector('#train-plan').innerText.includes('119,000')")
    page.dblclick("#train-start")
    page.wait_for_selector("#job-curve path.plot-train")
    (job,) = train_jobs(studio)
    database = Database.open(Workspace(studio.workspace))
    store = JobStore(database)
    tabs = [page]
    alone = [reloaded(page, store, job["id"]) for _ in range(reloads)]
    tabs.append(page.context.new_page())
    open_page(tabs[1], studio.url)
    open_tab(tabs[1], "Jobs")
    is_back(tabs[1], job["id"], 1)
    both = [reloaded(tabs[number % 2], store, job["id"]) for number in range(reloads)]
    assert store.get(job["id"]).state == "running", "the run ended before the last reload"

    tabs[1].click("#job-stop")
    for tab in tabs:
        tab.wait_for_selector("#job-outcome a[href*='/files/adapter/']", timeout=120_000)
    assert len(train_jobs(studio)) == 1
    done, steps = store.get(job["id"]), [step for step, _ in store.metrics(job["id"])["loss"]]
    database.close()
    assert (done.state, done.attempt) == ("succeeded", 1)
    assert steps == list(range(1, done.step + 1)), "a point of the curve is missing, or double"
    figure(
        f"{reloads} reloads of one tab and {reloads} of two while a job trains, and a double click on Start: 1 job, no "
        f"point of its curve lost or double; one is back {in_words(alone)}, two are {in_words(both)}"
    )


def reloaded(tab: Any, store: JobStore, job_id: str) -> float:
    """Seconds until a tab that is loaded anew shows the job as it was, or further."""
    step = store.get(job_id).step
    tab.reload(wait_until="commit")
    return is_back(tab, job_id, step)


def in_words(times: list[float]) -> str:
    """How soon."""
    within = f"{sum(taken <= GOAL_S for taken in times)} of {len(times)} times within {GOAL_S:.0f} s"
    return f"{within}, half of them within {median(times):.1f}, at the latest after {max(times):.2f}"
