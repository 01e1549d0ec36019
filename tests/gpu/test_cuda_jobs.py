"""Whole jobs on a CUDA device: killed again and again, and without enough memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.config import DataConfig, OptimConfig, TrainConfig, to_dict
from studio.service import Studio
from studio.tables import AdapterRow
from tests import toy
from tests.live import LiveStudio, gone
from tests.scenarios.plugin import Say

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
]
STEPS = 120
CONFIG = TrainConfig(
    max_steps=STEPS, epochs=1000, batch_size=8, eval_every=20, save_every=10, patience=0, dtype="float32",
    data=DataConfig(validation_share=0.2), optim=OptimConfig(learning_rate=5e-3),
)  # fmt: skip
Losses = list[tuple[int, float]]


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    """Workers run as `python -P` with an environment of their own: PYTHONPATH does not reach them, on purpose."""
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if subprocess.run([sys.executable, "-P", "-c", "import studio"], env=bare, cwd="/", check=False).returncode:
        pytest.skip("the package is not installed in this Python: pip install --no-deps -e .")


@pytest.mark.scenario(3)
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("quantization", "is_deterministic"), [("none", True), ("nf4", True), ("none", False)])
def test_killed_jobs_on_the_gpu_go_on(quantization: str, is_deterministic: bool, tmp_path: Path, figure: Say) -> None:
    """7 kills of the worker each; the curves and the adapter are those of the run that nobody touched."""
    config = {**to_dict(CONFIG), "quantization": quantization, "deterministic": is_deterministic}
    folder = toy.save_model(tmp_path / "model")
    kills = range(10, 80, 10)
    calm, losses = _trained(tmp_path / "calm", folder, config, range(0))
    killed, disturbed = _trained(tmp_path / "killed", folder, config, kills)
    assert [step for step, _ in losses] == [step for step, _ in disturbed] == list(range(1, STEPS + 1))
    worst = max(abs(one - other) for (_, one), (_, other) in zip(losses, disturbed, strict=True))
    name = "LoRA" if quantization == "none" else "QLoRA (nf4)"
    if is_deterministic:
        assert (worst, killed.sha256) == (0.0, calm.sha256)
        figure(f"{name} on the GPU, deterministic: {len(kills)} kills, all losses and the adapter equal bit for bit")
    else:
        assert worst < 1e-3  # CUDA's reductions may be ordered otherwise
        figure(f"{name} on the GPU, usual kernels: {len(kills)} kills, largest difference of a loss {worst:.0e}")


def _trained(root: Path, model: Path, config: dict[str, object], kills: range) -> tuple[AdapterRow, Losses]:
    """A job's adapter and losses, with its worker killed once each of these steps is saved."""
    with LiveStudio(root) as live:
        job_id = _submit(live, model, config)
        live.start()
        for step in kills:
            live.until(lambda step=step: (live.job(job_id).checkpoint_step or 0) >= step, 120)
            worker, attempt = live.worker(job_id), live.job(job_id).attempt
            worker.kill()
            live.until(lambda worker=worker: gone(worker))
            live.until(lambda attempt=attempt: live.job(job_id).attempt > attempt)
        job = live.until_state(job_id, "succeeded", "failed", timeout_s=180)
        assert job.state == "succeeded", (job.error_what, job.error_detail)
        assert job.attempt == 1 + len(kills)
        assert job.device.startswith("cuda:")
        return toy.library(live).adapter(job.result["adapter_id"]), live.store.metrics(job_id)["loss"]


def _submit(live: LiveStudio, model: Path, config: dict[str, object]) -> str:
    spec = {
        "model_id": toy.register_model(live, model).id,
        "dataset_id": toy.register_dataset(live).id,
        "train": config,
    }
    return live.store.submit("train", "animals", spec).id


@pytest.mark.scenario(18)
@pytest.mark.timeout(600)
def test_a_job_without_room_on_the_gpu_says_so_and_the_next_one_runs(tmp_path: Path, figure: Say) -> None:
    """This process holds all of the GPU but 1 GiB, of which CUDA itself takes half; the weights need 0.8 GiB."""
    wide = toy.save_model(tmp_path / "wide", hidden_size=3072, intermediate_size=8192)
    slim = toy.save_model(tmp_path / "slim")
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - 2**30, dtype=torch.uint8, device="cuda")
    config = {**to_dict(CONFIG), "max_steps": 3}
    with LiveStudio(tmp_path / "workspace") as live:
        job_id = _submit(live, wide, config)
        live.start()
        failed = live.until_state(job_id, "failed", "succeeded", timeout_s=180)
        assert (failed.state, failed.failure["kind"]) == ("failed", "gpu_memory"), failed.error_detail
        studio = Studio(live.workspace.root)
        live.until(lambda: any(remedy.changes for remedy in studio.board.remedies(job_id)))  # the worker has let go
        offered = studio.board.remedies(job_id)
        studio.close()
        del held
        torch.cuda.empty_cache()
        after = live.until_state(_submit(live, slim, config), "succeeded", "failed", timeout_s=180)
        assert after.state == "succeeded", (after.error_what, after.error_detail)
    assert failed.failure["evidence"] and len([remedy for remedy in offered if remedy.changes]) >= 1
    figure(f"no room on the GPU: “{failed.error_what}” {len(offered)} ways on are offered; the next job succeeds", 18)
