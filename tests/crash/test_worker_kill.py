"""Training survives every kill: the same adapter, bit for bit, and the same curves, as the run that nobody touched."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from core.config import DataConfig, OptimConfig, TrainConfig, to_dict
from studio.tables import AdapterRow, JobRow
from tests import toy
from tests.live import LiveStudio, gone
from tests.scenarios.plugin import Say

STEPS = 120
CONFIG = TrainConfig(
    max_steps=STEPS, epochs=1000, batch_size=8, eval_every=20, save_every=10, patience=0, dtype="float32",
    data=DataConfig(validation_share=0.2), optim=OptimConfig(learning_rate=5e-3),
)  # fmt: skip
EXACT = ("loss", "eval_loss", "learning_rate", "grad_norm")  # curves that do not measure time

Curves = dict[str, list[tuple[int, float]]]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.save_model(tmp_path_factory.mktemp("toy") / "model")


def submit(live: LiveStudio, model_folder: Path, config: TrainConfig = CONFIG) -> str:
    spec = {
        "model_id": toy.register_model(live, model_folder).id,
        "dataset_id": toy.register_dataset(live).id,
        "train": to_dict(config),
    }
    return live.store.submit("train", "animals", spec).id


def result(live: LiveStudio, job_id: str) -> tuple[AdapterRow, Curves]:
    job = live.until_state(job_id, "succeeded", "failed", timeout_s=120)
    assert job.state == "succeeded", (job.error_what, job.error_detail)
    curves = live.store.metrics(job_id)
    return toy.library(live).adapter(job.result["adapter_id"]), {name: curves[name] for name in EXACT}


@pytest.fixture(scope="module")
def untouched(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[AdapterRow, Curves]:
    """The adapter and the curves of a run that nobody disturbed."""
    with LiveStudio(tmp_path_factory.mktemp("untouched")) as live:
        job_id = submit(live, model_folder)
        live.start()
        row, curves = result(live, job_id)
        assert live.job(job_id).attempt == 1
        return row, curves


def saved(live: LiveStudio, job_id: str, step: int) -> JobRow:
    """Wait until a checkpoint of `step` or later is reported."""
    live.until(lambda: (live.job(job_id).checkpoint_step or 0) >= step or live.job(job_id).state == "failed")
    return live.job(job_id)


def kill_worker(live: LiveStudio, job_id: str) -> None:
    worker, attempt = live.worker(job_id), live.job(job_id).attempt
    worker.kill()
    live.until(lambda: gone(worker))
    live.until(lambda: live.job(job_id).attempt > attempt)


def kill_scheduler(live: LiveStudio, job_id: str) -> None:
    """The worker's life-line breaks: it saves, leaves, and the next scheduler starts a new one."""
    worker = live.worker(job_id)
    live.schedulers[-1].kill()
    live.schedulers[-1].wait()
    live.until(lambda: gone(worker), 10)
    assert live.job(job_id).state == "queued"
    live.start()


def kill_everything(live: LiveStudio, job_id: str) -> None:
    """Scheduler and worker at once, as a power cut or `kill -9` of the whole studio would."""
    worker = live.worker(job_id)
    for pid in (live.schedulers[-1].pid, worker.pid):
        os.kill(pid, signal.SIGKILL)
    live.schedulers[-1].wait()
    live.until(lambda: gone(worker))
    assert live.job(job_id).state == "running", "nobody was left to write"
    live.start()


def assert_same(found: tuple[AdapterRow, Curves], expected: tuple[AdapterRow, Curves]) -> None:
    assert found[0].sha256 == expected[0].sha256
    assert (found[0].step, found[0].eval_loss) == (expected[0].step, expected[0].eval_loss)
    assert found[1] == expected[1]


def integrity(live: LiveStudio) -> object:
    with live.database.reading() as session:
        return session.execute(text("PRAGMA integrity_check")).scalar()


def test_the_untouched_run_learns(untouched: tuple[AdapterRow, Curves]) -> None:
    row, curves = untouched
    assert [step for step, _ in curves["loss"]] == list(range(1, STEPS + 1))
    assert [step for step, _ in curves["eval_loss"]] == list(range(0, STEPS + 1, 20))
    assert curves["eval_loss"][-1][1] < curves["eval_loss"][0][1]
    assert row.eval_loss == min(value for _, value in curves["eval_loss"])
    assert len(row.sha256) == 64


@pytest.mark.scenario(2)
def test_kills_of_worker_scheduler_and_both_change_nothing(
    model_folder: Path, untouched: tuple[AdapterRow, Curves], tmp_path: Path, figure: Say
) -> None:
    with LiveStudio(tmp_path) as live:
        job_id = submit(live, model_folder)
        live.start()
        for step, kill in ((10, kill_worker), (40, kill_scheduler), (70, kill_everything)):
            assert saved(live, job_id, step).state == "running"
            kill(live, job_id)
        assert_same(result(live, job_id), untouched)
        assert live.job(job_id).attempt == 4
        assert integrity(live) == "ok"
        figure(f"3 kills of worker, scheduler and both: adapter and all {STEPS} steps' metric rows equal, integrity ok")


@pytest.mark.slow
@pytest.mark.scenario(2)
@pytest.mark.timeout(1800)
def test_fifty_random_kills_change_nothing(
    model_folder: Path, untouched: tuple[AdapterRow, Curves], tmp_path: Path, figure: Say
) -> None:
    """30 kills of the worker, 10 of the scheduler, 10 of both, at random moments, over as many jobs as that takes."""
    kills = [kill_worker] * 30 + [kill_scheduler] * 10 + [kill_everything] * 10
    dice = random.Random(0)
    dice.shuffle(kills)
    done = jobs = 0
    with LiveStudio(tmp_path) as live:
        live.start()
        while done < len(kills):
            job_id = submit(live, model_folder)
            jobs += 1
            for step in sorted(dice.sample(range(10, STEPS - 30, 10), 5)):
                saved(live, job_id, step)
                time.sleep(dice.random() * 0.3)
                kills[done](live, job_id)
                done += 1
            assert_same(result(live, job_id), untouched)
        assert integrity(live) == "ok"
    figure(f"{done} kills over {jobs} jobs: 0 lost, 0 torn, {jobs} of {jobs} adapters and curves equal bit for bit")


def test_pause_resume_and_stop_keep_what_was_learned(
    model_folder: Path, untouched: tuple[AdapterRow, Curves], tmp_path: Path
) -> None:
    """A pause changes nothing of the result; a stop keeps the best checkpoint until then as an adapter."""
    with LiveStudio(tmp_path) as live:
        job_id = submit(live, model_folder)
        live.start()
        saved(live, job_id, 30)
        live.store.pause(job_id)
        paused = live.until_state(job_id, "paused")
        assert 30 <= paused.step == paused.checkpoint_step < STEPS
        live.store.stop(job_id)  # of a paused job: it starts once more to file what it has
        row, curves = result(live, job_id)
        assert [step for step, _ in curves["loss"]] == list(range(1, paused.step + 1))
        assert curves["loss"] == untouched[1]["loss"][: paused.step]
        measured = [point for point in untouched[1]["eval_loss"] if point[0] <= paused.step]
        assert (row.step, row.eval_loss) == min(measured, key=lambda point: point[1])
        assert (toy.library(live).adapter_folder(row) / "adapter_config.json").exists()
