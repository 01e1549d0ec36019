"""The chat process: `python -P -m studio.chat --workspace DIR`, JSON lines in, JSON lines out.

    in   {"id": 1, "model": folder, "adapters": [folder or null], "conversations": [[[role, text]]], "settings": {}}
         {"stop": 1}
    out  {"id": 1, "texts": [...], "sha256": [...], "done": false, "message": ""}   or   {"id": 1, "error": [what, fix]}

Classifiers answer with labels (`studio.label_chat`). For all others, one base model stays loaded, with the adapters
that were asked for injected by name; each pane is a row of one batch with its own adapter. The base is unquantised,
also for adapters that were trained on a quantised one. `sha256` is that of the adapter file a pane really ran with. The
process ends with its input.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from core.errors import OutOfMemoryError, StudioError
from studio.failures import is_out_of_memory
from studio.label_chat import LabelChat, digest, wants_labels
from studio.log import log_to_stderr

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_ADAPTERS = 8  # kept injected at once
MIN_INTERVAL_S = 0.05  # between two chunks: what an eye can follow
_log = logging.getLogger(__name__)
Reply = dict[str, Any]


class Engine:
    """A base model with its adapters, and the answers of both."""

    def __init__(self) -> None:
        self._loaded: tuple[str, PreTrainedModel, PreTrainedTokenizerBase] | None = None  # with its folder
        self._labels = LabelChat()
        self._adapters: dict[str, str] = {}  # sha256 -> name in the model, the last used at the end

    def answer(self, request: Mapping[str, Any], stop: Callable[[], bool]) -> Iterator[Reply]:
        """The replies to one request, the last one `done`; StudioError when model or adapter cannot be used."""
        from core.config import GenerationConfig
        from core.data.records import Message
        from core.generate import stream

        count = len(request["conversations"])
        if wants_labels(request):
            yield _reply(("",) * count, ("",) * count, message="Loading the model ...")
            yield _reply(*self._labels.answer(request), done=True)
            return
        if self._loaded is None or self._loaded[0] != request["model"]:
            yield _reply(("",) * count, ("",) * count, message="Loading the model ...")
            self.drop()
        model, tokenizer = self._load(request["model"])
        sums = [self._adapter(model, folder) for folder in request["adapters"]]
        self._forget_old(model, set(sums))
        names = [self._adapters[one] if one else None for one in sums]
        conversations = [[Message(role, text) for role, text in turns] for turns in request["conversations"]]
        settings = GenerationConfig(**request["settings"])
        texts: Sequence[str] = ("",) * count
        last = 0.0
        for texts in stream(model, tokenizer, conversations, names, settings, stop):
            if time.monotonic() - last >= MIN_INTERVAL_S:
                last = time.monotonic()
                yield _reply(texts, sums)
        yield _reply(texts, sums, done=True)

    def drop(self) -> None:
        """Free the model and its memory."""
        self._loaded = None
        self._adapters.clear()
        self._labels.drop()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self, folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from core.models import load_model

        if self._loaded is None:
            self._loaded = (folder, *load_model(Path(folder)))
        return self._loaded[1], self._loaded[2]

    def _adapter(self, model: PreTrainedModel, folder: str | None) -> str:
        """The sha256 of an adapter's file, after seeing to it that the model has that adapter; "" for the base."""
        if folder is None:
            return ""
        from core.export.peft import load_adapter

        found = digest(folder)
        name = self._adapters.pop(found, "")
        if not name:
            name = f"adapter_{found[:16]}"
            load_adapter(model, Path(folder), name=name)
        self._adapters[found] = name
        return found

    def _forget_old(self, model: PreTrainedModel, needed: set[str]) -> None:
        from core.adapters import remove_adapter

        for old in [known for known in self._adapters if known not in needed]:
            if len(self._adapters) > MAX_ADAPTERS:
                remove_adapter(model, self._adapters.pop(old))


class Inbox:
    """Requests as they arrive, and what was stopped; a thread reads so that a stop is seen while an answer runs."""

    def __init__(self, lines: IO[bytes]) -> None:
        self.requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._stopped: set[int] = set()
        self._is_over = threading.Event()
        threading.Thread(target=self._read, args=(lines,), name="requests", daemon=True).start()

    def is_stopped(self, number: int) -> bool:
        """True when nobody waits for this answer any more."""
        return self._is_over.is_set() or number in self._stopped

    def _read(self, lines: IO[bytes]) -> None:
        for line in lines:
            message = json.loads(line)
            if "stop" in message:
                self._stopped.add(message["stop"])
            else:
                self.requests.put(message)
        self._is_over.set()
        self.requests.put(None)


class Answers(Protocol):
    """What answers the requests of a helper process."""

    def answer(self, request: Mapping[str, Any], stop: Callable[[], bool]) -> Iterator[Reply]:
        """The replies to one request, the last one `done`."""
        ...

    def drop(self) -> None:
        """Free the memory."""
        ...


def serve(inbox: Inbox, write: Callable[[Reply], None], engine: Answers) -> None:
    """Answer request after request until the input ends."""
    while (request := inbox.requests.get()) is not None:
        number = request["id"]
        if inbox.is_stopped(number):
            continue
        for reply in _without_exceptions(engine, request, partial(inbox.is_stopped, number)):
            write({"id": number, **reply})


def _without_exceptions(engine: Answers, request: Mapping[str, Any], stop: Callable[[], bool]) -> Iterator[Reply]:
    """The engine's replies, with an error for the user as the last one where it fails."""
    try:
        yield from engine.answer(request, stop)
    except StudioError as error:
        yield {"error": [error.what, error.fix]}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _log.exception("out of memory")
        engine.drop()
        wanted = OutOfMemoryError(
            "There is not enough memory for this answer.", "Ask for fewer panes or shorter answers."
        )
        yield {"error": [wanted.what, wanted.fix]}


def _reply(texts: Sequence[str], sums: Sequence[str], *, done: bool = False, message: str = "") -> Reply:
    return {"texts": list(texts), "sha256": list(sums), "done": done, "message": message}


def _take_stdout() -> IO[bytes]:
    """Standard output for our replies alone: whatever else prints goes to the log, even from native code."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


def run(name: str, engine: Answers) -> None:
    """Be the helper process `name` until standard input ends."""
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("--workspace", type=Path, required=True, help="only shown in the list of processes")
    parser.parse_args()
    replies = _take_stdout()
    log_to_stderr()

    def write(reply: Reply) -> None:
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()

    try:
        serve(Inbox(sys.stdin.buffer), write, engine)
    except BrokenPipeError:
        _log.info("the studio is gone")


if __name__ == "__main__":
    run("studio.chat", Engine())
