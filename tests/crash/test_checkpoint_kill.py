"""SIGKILL at random moments, also inside a save: the run ends with the same bytes as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("toy_run.py")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks")


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_runs_end_with_the_same_bytes(
    kills: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HARNESS), str(tmp_path), str(kills), "5"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    record_property("kill_harness", found)
    assert found["killed"] >= kills // 2
    assert found["torn"] == 0 and found["leftovers"] == 0
    assert found["clean"].startswith("step-000025 ")
    assert found["disturbed"] == found["clean"]
