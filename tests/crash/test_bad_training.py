"""Trainings that cannot go well, through a real worker: the reason is told and what was good is kept."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.checkpoint import checkpoints
from core.config import DataConfig, OptimConfig, TrainConfig, to_dict
from core.train import Trainer
from studio.attempt import Attempt
from studio.tables import JobRow
from studio.worker import DONE, work
from tests import toy
from tests.live import LiveStudio
from tests.scenarios.plugin import Say


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveStudio]:
    with LiveStudio(tmp_path / "workspace") as live:
        yield live


def trained(live: LiveStudio, folder: Path, config: TrainConfig) -> JobRow:
    """Train in this process, as a worker does."""
    spec = {
        "model_id": toy.register_model(live, folder).id,
        "dataset_id": toy.register_dataset(live).id,
        "train": to_dict(config),
    }
    job = live.store.submit("train", "animals", spec)
    live.store.claim("cpu", ["train"])
    for made in (live.workspace.run_folder(job.id), live.workspace.scratch(job.id)):
        made.mkdir()
    assert work(live.workspace, Attempt(live.database, job.id, 1), threading.Event()) == DONE
    return live.job(job.id)


@pytest.mark.scenario(17)
def test_a_run_that_diverges_keeps_its_good_checkpoints(
    live: LiveStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Say
) -> None:
    """The update of step 6 makes a weight infinite, as an overflow would: the step ends the run and is not saved."""
    update = Trainer._update

    def overflowing(self: Trainer, rate: float, grad_norm: torch.Tensor) -> None:
        update(self, rate, grad_norm)
        if self.step == 5:
            self.parameters[0].data[0, 0] = torch.inf

    monkeypatch.setattr(Trainer, "_update", overflowing)
    config = TrainConfig(
        max_steps=20, epochs=100, batch_size=8, eval_every=50, save_every=2, dtype="float32",
        data=DataConfig(validation_share=0), optim=OptimConfig(learning_rate=1e-3),
    )  # fmt: skip
    job = trained(live, toy.save_model(tmp_path / "model"), config)
    assert (job.state, job.failure["kind"]) == ("failed", "diverged")
    assert "by step 6" in job.error_what and "learning rate" in job.error_fix
    assert [item.step for item in checkpoints(live.workspace.checkpoints_folder(job.id))] == [2, 4]
    figure("a weight becomes infinite in step 6: stopped there, that step is not saved, two good checkpoints stay")


def test_a_run_that_is_stopped_in_its_first_attempt_keeps_its_adapter(
    live: LiveStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop is still asked for while the adapter's answers are scored, and must not end the job without it."""
    update = Trainer._update

    def stopping(self: Trainer, rate: float, grad_norm: torch.Tensor) -> None:
        update(self, rate, grad_norm)
        if self.step == 5:
            live.store.stop(live.store.list(["running"])[0].id)

    monkeypatch.setattr(Trainer, "_update", stopping)
    config = TrainConfig(
        max_steps=50, epochs=100, batch_size=8, eval_every=5, dtype="float32", data=DataConfig(validation_share=0.2)
    )
    job = trained(live, toy.save_model(tmp_path / "model"), config)
    assert (job.state, job.step, job.error_what) == ("succeeded", 6, "")
    row = toy.library(live).adapter(job.result["adapter_id"])
    assert (toy.library(live).adapter_folder(row) / "adapter_config.json").exists()
    assert set(job.result["scores"]) == {"before", "after"}


@pytest.mark.scenario(19)
def test_a_worker_without_memory_says_so(figure: Say) -> None:
    """An address space of 4 GB more than it has; the next 8 GB are refused by the system, in torch and in Python."""
    code = (
        "import resource, torch; from studio.failures import explain\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, -1))\n"
        "for make in (lambda: torch.ones(2**31), lambda: bytearray(2**33)):\n"
        "    try: make()\n"
        "    except Exception as error: print(explain(error).kind, explain(error).what)\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc to know the address space in use")
    assert resource.RLIMIT_AS is not None
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["host_memory The memory of this machine was not enough for this run."] * 2
    figure("2 of 2 refused allocations under RLIMIT_AS explained as this machine's memory; at most 3 attempts")
