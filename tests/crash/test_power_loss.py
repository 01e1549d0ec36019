"""A power cut at every point of a save, on a disk that keeps only what was synced: a whole checkpoint is always there.

The save is recorded as the calls that reach the disk, then every prefix of them is replayed the way a file system may
leave it: files that were not synced are missing, empty or torn, and a rename whose folder was not synced has happened
or has not.
"""

from __future__ import annotations

import os
import shutil
from itertools import product
from pathlib import Path

import pytest

import core.durable
from core.checkpoint import latest_checkpoint, prune, save_checkpoint
from tests.core.toy import toy_trainer
from tests.scenarios.plugin import Say

Event = tuple[str, str, bytes]  # what, which file or folder, its content


def record(monkeypatch: pytest.MonkeyPatch, events: list[Event]) -> None:
    """Note every sync with what it makes durable, every rename, and every removal."""
    fsync, rename, rmtree = os.fsync, os.rename, shutil.rmtree

    def noted_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(("sync folder", str(path), b"") if path.is_dir() else ("sync", str(path), path.read_bytes()))
        fsync(descriptor)

    def noted_rename(source: Path, target: Path) -> None:
        events.append(("rename", f"{source}\n{target}", b""))
        rename(source, target)

    def noted_rmtree(path: Path, **options: bool) -> None:
        if Path(path).exists():
            events.append(("remove", str(path), b""))
        rmtree(path, **options)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    for module in (core.durable, core.checkpoint):
        monkeypatch.setattr(module.shutil, "rmtree", noted_rmtree)


def replay(before: Path, after: Path, events: list[Event], unsynced: str, has_renamed: bool) -> None:
    """Make `after` what a disk may hold: `before`, then `events`; the file that was being written is `unsynced`."""
    shutil.copytree(before, after)
    here = lambda name: after / Path(name).relative_to(before)  # noqa: E731
    for place, (what, name, content) in enumerate(events):
        is_settled = any(later[0] == "sync folder" and later[1] == str(before) for later in events[place:])
        if what == "sync":
            here(name).parent.mkdir(exist_ok=True)
            is_last = place == len(events) - 1
            kept = {"whole": content, "empty": b"", "torn": content[: len(content) // 2]}.get(unsynced)
            if not is_last or kept is not None:
                here(name).write_bytes(kept if is_last and kept is not None else content)
        elif what == "rename" and (is_settled or has_renamed):
            source, target = name.split("\n")
            here(source).rename(here(target))
        elif what == "remove" and here(name).exists():
            for file in sorted(here(name).iterdir())[: 1 if place == len(events) - 1 else None]:
                file.unlink()  # one that is cut short has lost some files


@pytest.mark.scenario(6)
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to tell which file is synced")
def test_every_prefix_of_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Say
) -> None:
    live = tmp_path / "checkpoints"
    trainer = toy_trainer()
    for metrics in trainer.steps():
        save_checkpoint(trainer, live)
        if metrics.step == 3:
            break
    before = tmp_path / "before"
    shutil.copytree(live, before)
    next(iter(trainer.steps()))
    events: list[Event] = []
    record(monkeypatch, events)
    save_checkpoint(trainer, live)
    prune(live, keep=2)
    monkeypatch.undo()
    events = [(what, name.replace(str(live), str(before)), content) for what, name, content in events]
    assert sum(what == "sync" for what, *_ in events) >= 5 and "rename" in {what for what, *_ in events}
    count = 0
    for length, unsynced, has_renamed in product(
        range(len(events) + 1), ("whole", "missing", "empty", "torn"), (False, True)
    ):
        after = tmp_path / "after"
        replay(before, after, events[:length], unsynced, has_renamed)
        found = latest_checkpoint(after)
        assert found is not None and found.name in ("step-000003", "step-000004"), (length, unsynced, has_renamed)
        shutil.rmtree(after)
        count += 1
    figure(f"{count} of {count} disks after a cut hold a whole checkpoint, the last or the one before")
