"""The compare tab's conversation: cleared and left in the middle of an answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio.context import LocalContext

from studio.service import Studio
from studio.views import ChatChunk, ChatPane
from ui.i18n import Translator
from ui.panes import Transcript
from ui.tabs.compare import CompareTab

PANES = [ChatPane(None, "base")]


@pytest.fixture
def tab(studio: Studio, t: Translator) -> Iterator[CompareTab]:
    with gr.Blocks():
        made = CompareTab(studio, t)
        made.layout()
        token = LocalContext.in_event_listener.set(True)  # where updates are made
        yield made
        LocalContext.in_event_listener.reset(token)


def request(session: str = "page") -> Any:
    return SimpleNamespace(session_hash=session)


def chunks() -> Iterator[ChatChunk]:
    yield ChatChunk(("one",), ("",), done=False)
    yield ChatChunk(("one two",), ("",), done=True)


def test_an_answer_that_is_cleared_leaves_an_empty_conversation(tab: CompareTab) -> None:
    state = Transcript(model="m", adapters=[], turns=[[["user", "Hello?"]]])
    updates = tab._stream(PANES, state, chunks(), "page")
    assert "one" in str(next(updates))
    tab._clear(None, [], request())
    (last,) = list(updates)
    assert last[tab.transcript] == {"model": "m", "adapters": []}
    assert "Hello?" not in str(last) and tab.stops == {}


def test_a_cleared_answer_leaves_the_next_one_alone(tab: CompareTab) -> None:
    state = Transcript(model="m", adapters=[], turns=[[["user", "Hello?"]]])
    first, second = (tab._stream(PANES, state, chunks(), "page") for _ in range(2))
    next(first)
    tab._clear(None, [], request())
    next(second)
    list(first)
    assert list(tab.stops) == ["page"]
    assert list(second)[-1][tab.transcript]["turns"][0][-1] == ["assistant", "one two"]


def test_an_answer_that_is_stopped_is_kept_so_far(tab: CompareTab) -> None:
    state = Transcript(model="m", adapters=[], turns=[[["user", "Hello?"]]])
    updates = tab._stream(PANES, state, chunks(), "page")
    next(updates)
    tab._halt(request())
    (last,) = list(updates)
    assert last[tab.transcript]["turns"][0][0] == ["user", "Hello?"]


def test_a_question_without_an_answer_stands_in_the_form_again(tab: CompareTab) -> None:
    assert tab.shown(Transcript(asked="Why?"), request())[tab.prompt] == "Why?"
    assert tab.prompt not in tab.shown(Transcript(), request())
    tab.stops["page"] = threading.Event()
    assert "__type__" in tab.shown(Transcript(asked="Why?"), request())  # a skip: it is being answered
