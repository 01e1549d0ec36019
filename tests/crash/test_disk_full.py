"""A disk that is really full: a small file system of its own, filled to the last byte."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.checkpoint import latest_checkpoint, save_checkpoint
from core.errors import DiskFullError
from studio.reserve import RESERVE_BYTES, Reserve
from tests.core.toy import toy_trainer
from tests.live import LiveStudio
from tests.scenarios.plugin import Say

SIZE = 40 * 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 40 MB; a reason to skip where this user may not mount one (RLIMIT_FSIZE is tested anywhere)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount a small file system: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take every byte that is left."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            while file.write(bytes(65_536)):
                pass
    except OSError:
        pass
    return ballast


@pytest.mark.scenario(5)
def test_a_job_on_a_full_disk_fails_with_its_state_written_and_goes_on(small_disk: Path, figure: Say) -> None:
    with LiveStudio(small_disk / "workspace") as live:
        live.start()
        job = live.selftest(steps=400, seconds_per_step=0.02, save_every=20)
        live.until(lambda: live.job(job).checkpoint_step)
        reserve = Reserve(live.workspace)
        assert reserve.path.stat().st_size == RESERVE_BYTES
        ballast = fill(small_disk)
        failed = live.until_state(job, "failed")
        assert failed.failure["kind"] == "disk_full" and "disk is full" in failed.error_what
        assert not reserve.path.exists()
        waiting = live.selftest(steps=1, seconds_per_step=0)
        live.until(lambda: "no job is started" in live.workspace.scheduler_log.read_text())
        assert live.job(waiting).state == "queued", "the store still takes jobs"
        ballast.unlink()
        live.store.resume(job)
        done = live.until_state(job, "succeeded")
        assert done.attempt == 2 and [step for step, _ in live.store.metrics(job)["loss"]] == list(range(1, 401))
        live.until_state(waiting, "succeeded")
        assert reserve.path.exists()
    figure(
        "tmpfs full to the last byte: failed as disk full, states written, then on from the checkpoint without a gap"
    )


@pytest.mark.scenario(5)
def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(small_disk: Path, figure: Say) -> None:
    trainer = toy_trainer()
    steps = trainer.steps()
    next(steps)
    first = save_checkpoint(trainer, small_disk / "checkpoints")
    next(steps)
    ballast = fill(small_disk)
    with pytest.raises(DiskFullError, match=r"[\d,]+ bytes are free and [\d,]+ are needed"):
        save_checkpoint(trainer, first.parent)
    assert latest_checkpoint(first.parent) == first and not list(first.parent.glob(".tmp-*"))
    ballast.unlink()
    assert save_checkpoint(trainer, first.parent) == latest_checkpoint(first.parent)
    figure("a checkpoint on a full tmpfs: refused with free and needed bytes, the one before stays")


def test_the_reserve_is_kept_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from studio import reserve as module
    from studio.workspace import Workspace

    reserve = Reserve(Workspace.open(tmp_path))
    assert reserve.keep() and reserve.keep() and reserve.release() and not reserve.release()
    usage = type("Usage", (), {"free": RESERVE_BYTES})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    assert not reserve.keep() and not reserve.path.exists()
