"""The studio's side of the chat: starts the chat process when it is needed, asks it, and frees it when it is idle.

Torch-free. The process (`studio.chat`) speaks JSON lines: requests go to its standard input, chunks of the answer come
from its standard output. One request is worked on at a time; each has its own queue here, so an abandoned one delays
the next by at most its own length and can never block it for good.
"""

from __future__ import annotations

import itertools
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from core.errors import StudioError
from studio.launch import environment
from studio.views import ChatChunk
from studio.workspace import Workspace

IDLE_S = 600.0
DEADLINE_S = 600.0
GRACE_S = 3.0  # between the end of its input, SIGTERM and SIGKILL
_AGAIN = "Send the message again: the chat starts anew. Its log is chat.log in the workspace."


class ChatError(StudioError):
    """The chat could not answer."""


class HelperClient:
    """Replies of a helper process, which this starts, restarts after a crash, and stops. Safe to use from threads."""

    module = ""
    log_name = ""

    def __init__(self, workspace: Workspace, *, idle_s: float = IDLE_S, deadline_s: float = DEADLINE_S) -> None:
        self.workspace = workspace
        self.idle_s = idle_s
        self.deadline_s = deadline_s
        self._lock = threading.Lock()
        self._process: _ChatProcess | None = None
        self._timer: threading.Timer | None = None
        self._numbers = itertools.count(1)

    def replies(self, fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Ask, and yield the replies, the last one `done`. Closing the iterator stops the work.

        Raises ChatError on a crash or when `deadline_s` is over, and the StudioError that the process answers with.
        """
        number = next(self._numbers)
        process = self._ask({"id": number, **fields})
        try:
            yield from self._answers(process, number)
        finally:
            process.forget(number)
            self._idle_from_now()

    def close(self) -> None:
        """End the process and free its memory; the next `stream` starts it again."""
        with self._lock:
            process, self._process = self._process, None
            if self._timer is not None:
                self._timer.cancel()
        if process is not None:
            process.end()

    def _ask(self, request: Mapping[str, Any]) -> _ChatProcess:
        """Send a request to the running process, or to a new one when that has died meanwhile."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._process is None or not self._process.ask(request):
                self._process = _ChatProcess(self.workspace, self.module, self.log_name)
                if not self._process.ask(request):
                    raise ChatError("The chat process does not start.", _AGAIN)
            return self._process

    def _answers(self, process: _ChatProcess, number: int) -> Iterator[Mapping[str, Any]]:
        deadline = time.monotonic() + self.deadline_s
        while True:
            try:
                reply = process.replies[number].get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                process.end()
                raise ChatError(f"There was no answer within {self.deadline_s:.0f} seconds.", _AGAIN) from None
            if reply is None:
                raise process.why_it_ended()
            if "error" in reply:
                raise StudioError(*reply["error"])
            yield reply
            if reply["done"]:
                return

    def _idle_from_now(self) -> None:
        with self._lock:
            if self._process is None or self._process.replies:
                return  # closed, or another answer is on its way
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(self.idle_s, self._close_if_idle)
            self._timer.daemon = True
            self._timer.start()

    def _close_if_idle(self) -> None:
        with self._lock:
            if self._process is None or self._process.replies:
                return
            process, self._process = self._process, None
        process.end()


class ChatClient(HelperClient):
    """Answers from the chat process."""

    module = "studio.chat"
    log_name = "chat.log"

    def stream(
        self,
        model: Path,
        adapters: Sequence[Path | None],
        conversations: Sequence[Sequence[tuple[str, str]]],
        settings: Mapping[str, Any],
    ) -> Iterator[ChatChunk]:
        """Answer one conversation (role, text) a pane; `adapters` holds each pane's adapter folder, None for the base.

        Closing the iterator stops the generation. Raises what `replies` raises.
        """
        request = {
            "model": str(model),
            "adapters": [None if folder is None else str(folder) for folder in adapters],
            "conversations": [[list(turn) for turn in conversation] for conversation in conversations],
            "settings": dict(settings),
        }
        for reply in self.replies(request):
            yield ChatChunk(tuple(reply["texts"]), tuple(reply["sha256"]), reply["done"], reply["message"])


class _ChatProcess:
    """One life of the chat process, and the queues of the requests it has not finished."""

    def __init__(self, workspace: Workspace, module: str, log_name: str) -> None:
        self.replies: dict[int, queue.Queue[dict[str, Any] | None]] = {}
        self._lock = threading.Lock()  # of the queues
        self._input_lock = threading.Lock()
        self._is_over = self._was_ended = False
        log = workspace.root / log_name
        with log.open("wb") as errors:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", module, "--workspace", str(workspace.root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=workspace.root,
                env=environment(network=False),
                start_new_session=True,  # Ctrl-C in the terminal is for the studio, which then closes this
            )
        self._input = cast(IO[bytes], self._popen.stdin)
        threading.Thread(target=self._read, name="chat replies", daemon=True).start()

    def ask(self, request: Mapping[str, Any]) -> bool:
        """Send a request and open its queue; False when the process is gone."""
        with self._lock:
            if self._is_over or self._was_ended:
                return False
            self.replies[request["id"]] = queue.Queue()
        if self._write(request):
            return True
        self.replies.pop(request["id"], None)
        return False

    def forget(self, number: int) -> None:
        """Take no more of an answer; the process stops working on it if it still does."""
        if self.replies.pop(number, None) is not None and not self._is_over:
            self._write({"stop": number})

    def end(self) -> None:
        """Close its input, which it exits on; then SIGTERM, then SIGKILL."""
        self._was_ended = True
        for wish in (self._close_input, self._popen.terminate, self._popen.kill):
            wish()
            try:
                self._popen.wait(GRACE_S)
                return
            except subprocess.TimeoutExpired:
                continue

    def why_it_ended(self) -> ChatError:
        """The reason as the user should read it."""
        code = self._popen.wait()
        if self._was_ended:
            return ChatError("The chat was stopped.", "Send the message again to start it.")
        if code == -signal.SIGKILL:
            fix = "Close other programs, or pick a smaller model."
            return ChatError("The chat was killed, most likely because memory ran out.", fix)
        if code == -signal.SIGPROF:
            return ChatError("The model's chat template did not end, so the chat was stopped.", "Pick another model.")
        return ChatError("The chat process stopped unexpectedly.", _AGAIN)

    def _write(self, message: Mapping[str, Any]) -> bool:
        line = json.dumps(message).encode() + b"\n"
        try:
            with self._input_lock:
                self._input.write(line)
                self._input.flush()
        except (OSError, ValueError):  # a broken or a closed pipe
            return False
        return True

    def _close_input(self) -> None:
        if not self._input_lock.acquire(timeout=GRACE_S):
            return  # a hung process does not even read: the signals follow
        try:
            self._input.close()
        except OSError:
            return
        finally:
            self._input_lock.release()

    def _read(self) -> None:
        for line in self._popen.stdout or ():
            reply = json.loads(line)
            waiting = self.replies.get(reply["id"])
            if waiting is not None:
                waiting.put(reply)
        self._popen.wait()
        with self._lock:
            self._is_over = True
            for waiting in list(self.replies.values()):
                waiting.put(None)
