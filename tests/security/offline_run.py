"""The main job by the command line, to be run where there is no network: `offline_run.py WORKSPACE MODEL DATA`."""

from __future__ import annotations

import subprocess
import sys
import time

COMMAND = [sys.executable, "-P", "-m", "ui.main"]


def main() -> None:
    """Add, train, merge, chat, and ask the hub in vain; any command that fails ends this with its words."""
    workspace, model, data = sys.argv[1:]
    here = ("--workspace", workspace)
    for command in (
        ("models", "add", model, "--name", "toy"),
        ("datasets", "add", data, "--name", "animals"),
        ("train", "--model", "toy", "--dataset", "animals", "--rank", "4", "--epochs", "1", "--batch-size", "16"),
        ("merge", "animals"),
        ("generate", "--adapter", "animals", "--max-new-tokens", "4", "What does the cat say?"),
    ):
        done = subprocess.run([*COMMAND, *command, *here], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        sys.stdout.write(f"{command[0]} ok\n")
    started = time.monotonic()
    asking = [*COMMAND, "models", "add", "someone/model", *here]
    done = subprocess.run(asking, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "could not be reached" in done.stderr, done.stderr
    sys.stdout.write(f"hub refused after {time.monotonic() - started:.1f}\n")
    subprocess.run([*COMMAND, "stop", *here], capture_output=True, check=True)


if __name__ == "__main__":
    main()
