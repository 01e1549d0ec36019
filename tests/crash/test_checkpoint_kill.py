"""SIGKILL at random moments, also inside a save: the run ends with the same bytes as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.scenarios.plugin import Say

HARNESS = Path(__file__).with_name("toy_run.py")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks")


@pytest.mark.scenario(1)
@pytest.mark.timeout(600)
def test_killed_runs_end_with_the_same_bytes(tmp_path: Path, figure: Say) -> None:
    kills = 200
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(HARNESS), str(tmp_path), str(kills), "5"], capture_output=True, text=True, env=environment
    )
    taken_s = time.monotonic() - started
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] >= kills and found["inside_a_save"] >= 20
    assert found["torn"] == 0 and found["leftovers"] == 0
    assert found["clean"].startswith("step-000150 ")
    assert found["disturbed"] == found["clean"]
    figure(
        f"{found['killed']} kills, over 20 of them inside a save: 0 lost, {found['torn']} torn, "
        f"the final checkpoint equal bit for bit; in {taken_s:.0f} s"
    )
