"""The sides of a comparison: processes of their own that wait for their turn.

A side is started as `python -m MODULE '{"side": ...}'`, gets ready, and answers one request after the other: a line of
JSON in, a line of JSON out. So the sides can take turns step by step on one machine, each with its own peak of memory
and its own imports, and one that fails costs nobody else anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from tests.bench.record import ROOT

Answer = dict[str, Any]
TAIL_CHARACTERS = 400  # of a failed side's last words


class SideError(Exception):
    """A side failed, or did not answer in time."""


class Side:
    """One side while it runs. `error` is empty until it fails; a failed side is ended and not asked again."""

    def __init__(self, module: str, label: str, **settings: Any) -> None:
        self.label = label
        self.error = ""
        self.started = time.perf_counter()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        command = [sys.executable, "-m", module, json.dumps(settings)]
        path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env=os.environ | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")  # the end

    def wait(self, seconds: float = 600.0) -> Answer | None:
        """The side's next answer; None when it failed, `error` then says how."""
        if self.error:
            return None
        try:
            line = self._lines.get(timeout=max(0.1, seconds))
            answer: Answer = json.loads(line) if line else {"error": self._last_words()}
        except queue.Empty:
            answer = {"error": f"no answer within {seconds:.0f} s"}
        if "error" in answer:
            self.fail(str(answer["error"]))
            return None
        return answer

    def ask(self, seconds: float = 600.0, **request: Any) -> Answer | None:
        """Send a request and wait for its answer, as `wait`."""
        if self.error:
            return None
        try:
            assert self._process.stdin
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            self.fail(self._last_words())
            return None
        return self.wait(seconds)

    def fail(self, error: str) -> None:
        """End the side for a reason."""
        self.error = error
        self.end()

    def end(self) -> None:
        """End the process, kindly first."""
        if self._process.poll() is None and self._process.stdin and not self.error:
            self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=20)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        return self._errors.read().strip()[-TAIL_CHARACTERS:] or f"ended with code {self._process.returncode}"


def serve(make: Callable[[dict[str, Any]], Callable[..., Answer]]) -> None:
    """The main function of a side's module: get ready, say so, and answer requests until there are no more.

    `make` gets the settings and returns what answers. What libraries print goes to stderr, not between the answers.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(work: Callable[[], Answer]) -> None:
        try:
            answer = work()
        except Exception as error:  # noqa: BLE001 - whatever happens is this side's result
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error)[:TAIL_CHARACTERS]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    ready: list[Callable[..., Answer]] = []

    def prepare() -> Answer:
        ready.append(make(json.loads(sys.argv[1])))
        return {"ready": True}

    reply(prepare)
    for line in sys.stdin if ready else ():
        request = json.loads(line)
        reply(lambda request=request: ready[0](**request))  # type: ignore[misc]


def take_turns(sides: Iterable[Side], rounds: int, ask: Callable[[Side], Answer | None]) -> dict[str, list[Answer]]:
    """Ask every side in turn, `rounds` times over; the answers by label, of a failed side those it gave."""
    found: dict[str, list[Answer]] = {}
    for _ in range(rounds):
        for side in sides:
            if (answer := ask(side)) is not None:
                found.setdefault(side.label, []).append(answer)
    return found
