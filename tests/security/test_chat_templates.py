"""Chat templates come with models: bombs are stopped, and code does not run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.limits import CPU_S, KILLED_AFTER_S, LimitError, Limits
from studio.failures import explain_exit
from tests.scenarios.plugin import Say
from tests.security.template_bombs import BOMBS, CANARY

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.scenario(36)
@pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=pytest.mark.slow)])
def test_bombs_are_stopped_and_code_does_not_run(share: float, tmp_path: Path, figure: Say) -> None:
    harness = [sys.executable, "-m", "tests.security.template_bombs", str(tmp_path), str(share)]
    done = subprocess.run(
        harness, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    found = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    killed = [name for name, line in found.items() if line["exit"] == -signal.SIGPROF]
    assert list(found) == list(BOMBS)
    assert {line["exit"] for line in found.values()} == {0, -signal.SIGPROF}, found
    assert "a giant power" in killed  # what nothing inside the process can interrupt
    slowest, largest = (max(line[key] for line in found.values()) for key in ("cpu_s", "peak_mib"))
    assert slowest < KILLED_AFTER_S * share + 0.5 and largest <= 1024 + 128
    assert not (tmp_path / CANARY).exists()
    limit = f"{KILLED_AFTER_S * share:g} s"
    figure(
        f"{len(BOMBS)} templates, 0 ran code; stopped within {limit} of the processor and {largest:,} MiB, 1 by a kill"
    )


def test_what_is_within_the_limits_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(signal.SIGVTALRM), signal.getitimer(signal.ITIMER_PROF)]
    monkeypatch.setattr("core.limits.CPU_S", 0.2)
    with Limits() as limits:
        for _ in range(3):
            limits.renew()
            sum(range(10**6))
    assert [signal.getsignal(signal.SIGVTALRM), signal.getitimer(signal.ITIMER_PROF)] == before
    with pytest.raises(LimitError), Limits():
        while True:
            pass


def test_a_worker_that_was_killed_says_why() -> None:
    assert "chat template did not end" in explain_exit(-signal.SIGPROF).what
    assert 0 < CPU_S < KILLED_AFTER_S
