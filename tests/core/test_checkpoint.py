"""Checkpoints: a resumed run is the same run bit for bit, and no failure of the disk costs the one before."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import core.checkpoint
import core.durable
from core.adapters import adapter_state_dict
from core.checkpoint import (
    checkpoints,
    damaged_since,
    latest_checkpoint,
    load_checkpoint,
    prune,
    restore_best,
    save_checkpoint,
)
from core.config import AdapterConfig, OptimConfig
from core.errors import CheckpointError, DiskFullError, StudioError
from core.export.peft import load_adapter
from core.train import Trainer
from tests.core.toy import same_bits, toy_config, toy_gpt2, toy_llama, toy_records, toy_trainer, trained_state
from tests.scenarios.plugin import Say


def advance(trainer: Trainer, steps: int) -> list[tuple[float, float | None]]:
    """Run some steps; their losses."""
    losses = []
    for metrics in trainer.steps():
        losses.append((metrics.loss, metrics.eval_loss))
        if len(losses) == steps:
            break
    return losses


@pytest.mark.parametrize("make", [toy_llama, toy_gpt2])
def test_a_resumed_run_is_bit_identical(make: Any, tmp_path: Path) -> None:
    """With dropout on; the second trainer is made from nothing, with the random numbers elsewhere."""
    config = toy_config(epochs=6.0, patience=0)
    whole = toy_trainer(config, model=make())
    losses = advance(whole, 10)
    first = toy_trainer(config, model=make())
    before = advance(first, 5)
    path = save_checkpoint(first, tmp_path)
    torch.manual_seed(12345)
    second = toy_trainer(config, model=make())
    load_checkpoint(second, path)
    assert same_bits(trained_state(first), trained_state(second))
    assert before + advance(second, 5) == losses
    assert same_bits(trained_state(whole), trained_state(second))
    for name in ("step", "best_step", "best_eval_loss", "last_eval_loss", "measurements_since_best", "stopped_early"):
        assert getattr(second, name) == getattr(whole, name)
    assert save_checkpoint(second, tmp_path / "b").name == "step-000010"
    save_checkpoint(whole, tmp_path / "a")
    files = [sorted((tmp_path / side / "step-000010").iterdir()) for side in "ab"]
    one, other = ([(file.name, file.read_bytes()) for file in side] for side in files)
    assert one == other


def test_every_trained_tensor_comes_back(tmp_path: Path) -> None:
    adapter = AdapterConfig(r=2, bias="all", modules_to_save=("ln_f",), use_rslora=True)
    config = toy_config(adapter=adapter)
    first, second = toy_trainer(config, model=toy_gpt2()), toy_trainer(config, model=toy_gpt2())
    advance(first, 3)
    load_checkpoint(second, save_checkpoint(first, tmp_path))
    assert same_bits(trained_state(first), trained_state(second))
    assert {type(value) for value in json.loads((tmp_path / "step-000003/trainer.json").read_text()).values()}


def test_a_checkpoint_is_an_adapter_folder(tmp_path: Path) -> None:
    trainer = toy_trainer()
    advance(trainer, 2)
    path = save_checkpoint(trainer, tmp_path)
    model = toy_llama()
    load_adapter(model, path, "loaded")
    assert same_bits(adapter_state_dict(model, "loaded"), adapter_state_dict(trainer.model))
    names = {file.name for file in path.iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "trainer.safetensors", "trainer.json", "manifest.json",
    }  # fmt: skip
    stored = load_file(path / "trainer.safetensors")
    for moment in ("step", "exp_avg", "exp_avg_sq"):
        assert sum(name.startswith(f"optimizer.{moment}.") for name in stored) == len(trainer.parameters)


def test_other_settings_and_other_data_are_refused(tmp_path: Path) -> None:
    trainer = toy_trainer()
    advance(trainer, 1)
    path = save_checkpoint(trainer, tmp_path)
    with pytest.raises(CheckpointError, match="other settings"):
        load_checkpoint(toy_trainer(toy_config(optim=OptimConfig(learning_rate=2e-2))), path)
    with pytest.raises(CheckpointError, match="another dataset"):
        load_checkpoint(toy_trainer(records=toy_records(23)), path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of steps 1 to 3."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = toy_trainer()
    for _ in trainer.steps():
        save_checkpoint(trainer, folder)
        if trainer.step == 3:
            break
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def test_listing(folder: Path) -> None:
    found = checkpoints(folder)
    assert [info.step for info in found] == [1, 2, 3]
    assert [info.is_best for info in found] == [False, True, False]
    assert [info.eval_loss is not None for info in found] == [False, True, False]
    assert all(info.size_bytes > 1000 and info.saved_at > 1e9 for info in found)
    assert checkpoints(folder / "missing") == [] and latest_checkpoint(folder / "missing") is None


def test_listing_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from core.checkpoint import checkpoints, latest_checkpoint, prune;"
        f"f = Path({str(folder)!r}); print(len(checkpoints(f)), latest_checkpoint(f).name, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "step-000003", "False"]


@pytest.mark.scenario(7)
def test_bit_rot_is_found_anywhere(folder: Path, figure: Say) -> None:
    """One flipped bit, or a lost end, at 100 random places of the newest checkpoint: always found, always survived."""
    draw = random.Random(0)
    newest = folder / "step-000003"
    files = sorted(newest.iterdir())
    found = 0
    for _ in range(100):
        file = draw.choice(files)
        good = file.read_bytes()
        place = draw.randrange(len(good))
        damaged = bytearray(good)
        damaged[place] ^= 1 << draw.randrange(8)
        file.write_bytes(bytes(damaged) if draw.random() < 0.7 else good[:place])
        if file.name == "manifest.json":  # a changed fact is noticed when it is used; a changed hash at once
            assert latest_checkpoint(folder) in (folder / "step-000002", newest)
            found += 1
        else:
            assert latest_checkpoint(folder) == folder / "step-000002"
            with pytest.raises(CheckpointError, match=file.name):
                load_checkpoint(toy_trainer.cached, newest)  # type: ignore[attr-defined]
            found += damaged_since(folder, folder / "step-000002") == ["step-000003"]
        file.write_bytes(good)
    assert latest_checkpoint(folder) == newest and damaged_since(folder, newest) == []
    assert found == 100
    figure(f"{found} of 100 found or without effect; the checkpoint before is used")


@pytest.fixture(autouse=True, scope="module")
def _one_trainer() -> None:
    toy_trainer.cached = toy_trainer()  # type: ignore[attr-defined]


def test_a_missing_file_and_a_leftover_do_not_count(folder: Path) -> None:
    (folder / "step-000003" / "trainer.safetensors").unlink()
    shutil.copytree(folder / "step-000002", folder / ".tmp-step-000009-1")
    (folder / "step-000004").mkdir()
    assert latest_checkpoint(folder) == folder / "step-000002"


def test_prune_keeps_the_newest_and_the_best(folder: Path) -> None:
    for step in range(4, 9):
        shutil.copytree(folder / "step-000001", folder / f"step-{step:06d}")
    removed = prune(folder, keep=2, best_step=2)
    assert [path.name for path in removed] == [f"step-{step:06d}" for step in (1, 3, 4, 5, 6)]
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000007", "step-000008"]
    assert prune(folder, keep=2, best_step=2) == []


def test_prune_does_not_count_a_torn_one(folder: Path) -> None:
    (folder / "step-000003" / "manifest.json").unlink()
    prune(folder, keep=1)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002"]


def test_restore_best_without_measurements_keeps_the_last(folder: Path) -> None:
    trainer = toy_trainer()
    advance(trainer, 1)
    before = trained_state(trainer)
    assert restore_best(trainer, folder) == 1
    assert same_bits(before, trained_state(trainer))


def test_a_full_disk_is_told_before_writing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(core.durable.shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 321, 321))
    trainer = toy_trainer()
    advance(trainer, 4)
    with pytest.raises(DiskFullError, match=r"321 bytes are free and [\d,]{5,} are needed"):
        save_checkpoint(trainer, folder)
    assert sorted(path.name for path in folder.iterdir()) == [f"step-00000{step}" for step in (1, 2, 3)]


@pytest.mark.parametrize("limit", [2_000, 40_000])
def test_a_disk_that_is_really_full(folder: Path, limit: int) -> None:
    """A file-size limit stops the adapter's file, or the trainer's, half way, in whatever library writes it."""
    trainer = toy_trainer()
    advance(trainer, 4)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(DiskFullError, match="bytes are free"):
            save_checkpoint(trainer, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in folder.iterdir()) == [f"step-00000{step}" for step in (1, 2, 3)]
    assert save_checkpoint(trainer, folder) == latest_checkpoint(folder)
    largest = max(file.stat().st_size for file in (folder / "step-000004").iterdir())
    adapter = (folder / "step-000004" / "adapter_model.safetensors").stat().st_size
    assert 2_000 < adapter < 40_000 < largest  # so that the two limits stop different files


class Failing:
    """Makes the n-th of all writes, syncs, renames and folder makings fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        self.calls, self.fails_at, self.code = 0, 0, code
        for owner, name in ((os, "fsync"), (os, "rename"), (Path, "mkdir"), (core.durable, "write_file")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))
        monkeypatch.setattr(core.checkpoint, "write_file", self._counted(core.checkpoint.write_file))

    def _counted(self, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.fails_at:
                raise OSError(self.code, os.strerror(self.code))
            return function(*args, **kwargs)

        return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("step", [3, 4])
@pytest.mark.scenario(4)
def test_any_failing_call_leaves_the_checkpoint_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int, step: int, figure: Say
) -> None:
    """Also when step 3 is saved a second time, over the one that is there."""
    trainer = toy_trainer()
    advance(trainer, step)
    failing = Failing(monkeypatch, code)
    save_checkpoint(trainer, folder)
    wanted = failing.calls
    if step == 4:
        shutil.rmtree(folder / "step-000004")
    assert wanted >= 12
    for nth in range(1, wanted + 1):
        failing.calls, failing.fails_at = 0, nth
        with pytest.raises(StudioError) as caught:
            save_checkpoint(trainer, folder)
        failing.fails_at = 0
        assert isinstance(caught.value, DiskFullError) == (code == errno.ENOSPC)
        if code == errno.ENOSPC:
            assert "bytes are free" in caught.value.what
        assert list(folder.glob(".tmp-*")) == []
        newest = latest_checkpoint(folder)
        assert newest is not None and newest.name in ("step-000003", "step-000004")
        load_checkpoint(toy_trainer.cached, newest)  # type: ignore[attr-defined]
        shutil.rmtree(folder / "step-000004", ignore_errors=True)
    save_checkpoint(trainer, folder)
    assert latest_checkpoint(folder) == folder / f"step-{step:06d}"
    figure(f"{errno.errorcode[code]} at each of {wanted} calls of a save: the checkpoint before loads, nothing partial")


def test_power_loss_at_any_point_of_a_save_leaves_a_whole_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is synced before the rename that shows it, and the rename before the save returns."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def recorded_rename(source: Any, target: Any) -> None:
        events.append(("rename", str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    trainer = toy_trainer()
    advance(trainer, 4)
    path = save_checkpoint(trainer, folder)
    at = events.index(("rename", str(path)))
    synced = {Path(name).name for kind, name in events[:at] if kind == "sync"}
    assert {file.name for file in path.iterdir()} <= synced
    assert any(Path(name).name.startswith(".tmp-") for kind, name in events[:at] if kind == "sync")
    assert ("sync", str(folder)) in events[at:]
