"""Runs a toy training again and again, killing it at random moments, and prints what came of it as JSON.

The children are forked from one process that has already imported torch, so that a kill costs no second import.
Usage: toy_run.py FOLDER KILLS SEED
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.checkpoint import latest_checkpoint, load_checkpoint, prune, save_checkpoint
from core.durable import verify_folder
from core.errors import CheckpointError
from tests.core.toy import toy_config, toy_trainer

EPOCHS, STEPS = 30.0, 150


def train(folder: Path, ready: int) -> None:
    """What a worker does: go on from the newest checkpoint, and save after every step."""
    trainer = toy_trainer(toy_config(epochs=EPOCHS, patience=0))
    newest = latest_checkpoint(folder)
    if newest is not None:
        load_checkpoint(trainer, newest)
    os.write(ready, b".")
    for _ in trainer.steps():
        save_checkpoint(trainer, folder)
        prune(folder, keep=2, best_step=trainer.best_step)


def fork(folder: Path) -> tuple[int, int]:
    """Start a training child; returns its id and the end of a pipe that tells when its steps begin."""
    listen, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(listen)
        code = 1
        try:
            train(folder, tell)
            code = 0
        finally:
            os._exit(code)
    os.close(tell)
    return child, listen


def kill_at_random(folder: Path, draw: random.Random, longest_s: float) -> tuple[bool, bool]:
    """Let a child run for a while and kill it: (was killed, was killed inside a save)."""
    child, listen = fork(folder)
    select.select([listen], [], [])
    time.sleep(draw.uniform(0, longest_s))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(listen)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError("the training itself failed")
    return os.WIFSIGNALED(status), any(folder.glob(f".tmp-*-{child}"))


def torn(folder: Path) -> int:
    """How many checkpoints under their final name do not match their manifest, half-pruned ones aside."""
    count = 0
    for path in folder.glob("step-*"):
        try:
            verify_folder(path)
        except CheckpointError:
            count += (path / "manifest.json").exists() and len(list(path.iterdir())) == 5
    return count


def steps_done(folder: Path) -> int:
    """The step of the newest checkpoint."""
    newest = latest_checkpoint(folder)
    return int(newest.name.removeprefix("step-")) if newest else 0


def result(folder: Path) -> str:
    """SHA-256 over every file of the last checkpoint."""
    newest = latest_checkpoint(folder)
    if newest is None:
        return ""
    parts = [file.name.encode() + file.read_bytes() for file in sorted(newest.iterdir())]
    return newest.name + " " + hashlib.sha256(b"".join(parts)).hexdigest()


def main(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Train once undisturbed, then once through `kills` kills."""
    torch.set_num_threads(1)
    started = time.monotonic()
    clean, disturbed = folder / "clean", folder / "disturbed"
    child, listen = fork(clean)
    select.select([listen], [], [])
    began = time.monotonic()
    os.waitpid(child, 0)
    longest_s = 2.0 * (time.monotonic() - began) / STEPS  # so that about every second attempt saves a step
    draw = random.Random(seed)
    inside = killed = damaged = 0
    for _ in range(20 * kills):
        is_ahead = steps_done(disturbed) > 0.9 * STEPS * killed / kills  # it must not end before the last kill
        was_killed, was_inside = kill_at_random(disturbed, draw, longest_s / 4 if is_ahead else longest_s)
        killed, inside = killed + was_killed, inside + was_inside
        damaged += torn(disturbed)
        if killed >= kills or not was_killed:
            break
    child, _ = fork(disturbed)
    os.waitpid(child, 0)
    return {
        "killed": killed, "inside_a_save": inside, "torn": damaged, "clean": result(clean),
        "disturbed": result(disturbed), "leftovers": len(list(disturbed.glob(".tmp-*"))),
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))) + "\n")
