"""The chat in its real process with a toy model: what it says, which adapter says it, how it ends and comes back."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.errors import AdapterError, StudioError
from studio.chat import Engine, Inbox
from studio.chat_client import ChatClient, ChatError
from studio.views import ChatChunk
from studio.workspace import Workspace
from tests.toy import save_model

ASK = [[("user", "What does the cat say?")]]
GREEDY = {"max_new_tokens": 12, "temperature": 0.0, "top_p": 1.0, "seed": 0}
LONG = {**GREEDY, "max_new_tokens": 100}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that changes what the model says a lot."""
    import torch

    from core.adapters import adapter_parameters, inject
    from core.config import AdapterConfig
    from core.export.peft import save_adapter
    from core.models import load_model

    base, _ = load_model(model)
    inject(base, AdapterConfig(r=4), seed=1)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(base):
            parameter.normal_(std=0.5)
    return save_adapter(base, tmp_path_factory.mktemp("chat") / "adapter")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.open(tmp_path_factory.mktemp("chat") / "workspace")


@pytest.fixture(scope="module")
def client(workspace: Workspace) -> Iterator[ChatClient]:
    """One client for most tests: the process takes seconds to import torch."""
    made = ChatClient(workspace, deadline_s=120)
    yield made
    made.close()


def _pid(client: ChatClient) -> int:
    assert client._process is not None
    return client._process._popen.pid


def _last(chunks: Iterator[ChatChunk]) -> ChatChunk:
    return list(chunks)[-1]


def _reference(model: Path, adapter: Path | None) -> str:
    """The answer of a model loaded here, that never sat beside another adapter."""
    from core.config import GenerationConfig
    from core.data.records import Message
    from core.export.peft import load_adapter
    from core.generate import generate
    from core.models import load_model

    base, tokenizer = load_model(model)
    if adapter is not None:
        load_adapter(base, adapter)
    return generate(base, tokenizer, [[Message(*ASK[0][0])]], None, GenerationConfig(**GREEDY))[0]


def test_each_pane_is_answered_by_what_it_names(client: ChatClient, model: Path, adapter: Path) -> None:
    chunks = list(client.stream(model, [None, adapter, None], ASK * 3, GREEDY))
    assert chunks[0].message == "Loading the model ..." and not chunks[0].done
    assert [chunk.done for chunk in chunks[:-1]] == [False] * (len(chunks) - 1) and chunks[-1].done
    base, tuned = _reference(model, None), _reference(model, adapter)
    assert base != tuned
    assert chunks[-1].texts == (base, tuned, base)
    digest = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert chunks[-1].sha256 == ("", digest, "")


def test_the_model_stays_loaded(client: ChatClient, model: Path) -> None:
    _last(client.stream(model, [None], ASK, GREEDY))
    pid = _pid(client)
    chunks = list(client.stream(model, [None], ASK, GREEDY))
    assert _pid(client) == pid and not any(chunk.message for chunk in chunks)


def test_this_process_has_not_imported_what_the_chat_needs() -> None:
    code = "import sys, studio.chat_client; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_crash_is_said_plainly_and_the_next_message_works(client: ChatClient, model: Path) -> None:
    _last(client.stream(model, [None], ASK, GREEDY))
    answer = client.stream(model, [None], ASK, LONG)
    next(answer)
    os.kill(_pid(client), signal.SIGKILL)
    with pytest.raises(ChatError, match="killed, most likely because memory ran out") as caught:
        list(answer)
    assert caught.value.fix
    assert _last(client.stream(model, [None], ASK, GREEDY)).done


def test_closing_the_stream_stops_the_answer_and_frees_the_next(client: ChatClient, model: Path) -> None:
    answer = client.stream(model, [None], ASK, LONG)
    next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert client._process is not None and client._process.replies == {}
    assert _last(client.stream(model, [None], ASK, GREEDY)).done


def test_an_abandoned_stream_blocks_nobody(client: ChatClient, model: Path) -> None:
    abandoned = client.stream(model, [None], ASK, GREEDY)
    next(abandoned)  # and never again, as a page that was closed
    assert _last(client.stream(model, [None], ASK, GREEDY)).done
    abandoned.close()  # type: ignore[attr-defined]


def test_threads_get_their_own_answers(client: ChatClient, model: Path, adapter: Path) -> None:
    wanted = {None: _reference(model, None), adapter: _reference(model, adapter)}
    found: list[tuple[Path | None, str]] = []

    def ask(pane: Path | None) -> None:
        found.append((pane, _last(client.stream(model, [pane], ASK, GREEDY)).texts[0]))

    threads = [threading.Thread(target=ask, args=(pane,)) for pane in [None, adapter] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6 and all(text == wanted[pane] for pane, text in found)


@pytest.mark.parametrize("what", ["model", "adapter", "settings"])
def test_what_cannot_be_used_is_said_and_the_chat_goes_on(
    client: ChatClient, model: Path, tmp_path: Path, what: str
) -> None:
    chosen = tmp_path / "none" if what == "model" else model
    pane = tmp_path / "none" if what == "adapter" else None
    settings = {**GREEDY, "temperature": -1.0} if what == "settings" else GREEDY
    with pytest.raises(StudioError) as caught:
        list(client.stream(chosen, [pane], ASK, settings))
    assert caught.value.what and caught.value.fix and "Traceback" not in str(caught.value)
    assert _last(client.stream(model, [None], ASK, GREEDY)).done


def test_no_answer_in_time_ends_the_process(workspace: Workspace, model: Path) -> None:
    hasty = ChatClient(workspace, deadline_s=0.2)
    answer = hasty.stream(model, [None], ASK, GREEDY)
    with pytest.raises(ChatError, match=r"within 0 seconds"):
        list(answer)
    assert hasty._process is None or not psutil.pid_exists(_pid(hasty))
    hasty.close()


def test_an_idle_process_is_freed(workspace: Workspace, model: Path) -> None:
    brief = ChatClient(workspace, idle_s=0.3, deadline_s=120)
    _last(brief.stream(model, [None], ASK, GREEDY))
    pid = _pid(brief)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid) and brief._process is None
    brief.close()


def test_it_ends_with_its_input(workspace: Workspace) -> None:
    """What happens when the studio is killed: the pipe closes."""
    command = [sys.executable, "-P", "-m", "studio.chat", "--workspace", str(workspace.root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 0


def test_stray_prints_do_not_reach_the_replies(tmp_path: Path) -> None:
    code = (
        "import os, sys, studio.chat as chat\n"
        "replies = chat._take_stdout()\n"
        "print('stray'); sys.stdout.flush(); os.write(1, b'native')\n"
        "replies.write(b'reply'); replies.flush()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"reply" and done.stderr == b"stray\nnative"


def test_a_stop_is_seen_while_an_answer_runs() -> None:
    reader, writer = os.pipe()
    inbox = Inbox(os.fdopen(reader, "rb"))
    os.write(writer, json.dumps({"id": 1}).encode() + b"\n" + json.dumps({"stop": 1}).encode() + b"\n")
    assert inbox.requests.get(timeout=5) == {"id": 1}
    deadline = time.monotonic() + 5
    while not inbox.is_stopped(1) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert inbox.is_stopped(1) and not inbox.is_stopped(2)
    os.close(writer)
    assert inbox.requests.get(timeout=5) is None
    assert inbox.is_stopped(2)  # nobody waits for anything any more


def test_unused_adapters_are_dropped_beyond_the_limit(
    model: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    from core.adapters import adapter_names

    monkeypatch.setattr("studio.chat.MAX_ADAPTERS", 2)
    folders = []
    for number in range(4):
        folder = shutil.copytree(adapter, tmp_path / str(number))
        weights = load_file(folder / "adapter_model.safetensors")
        save_file(
            {name: tensor * (number + 1) for name, tensor in weights.items()}, folder / "adapter_model.safetensors"
        )
        folders.append(folder)
    engine = Engine()
    for folder in folders:
        request: dict[str, Any] = {
            "model": str(model),
            "adapters": [str(folder)],
            "conversations": ASK,
            "settings": GREEDY,
        }
        assert list(engine.answer(request, lambda: False))[-1]["done"]
    assert engine._loaded is not None and len(adapter_names(engine._loaded[1])) == 2
    request["adapters"] = [str(tmp_path / "missing")]
    with pytest.raises(AdapterError):
        list(engine.answer(request, lambda: False))
