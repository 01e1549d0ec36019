"""The panes of the compare tab: what each has said, and how it looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from studio.views import ChatChunk, ChatPane
from ui.fragments import bubbles, empty, esc
from ui.i18n import Translator

Conversation = list[list[str]]  # [role, text] pairs: what JSON in the browser keeps


class Transcript(TypedDict, total=False):
    """What the browser remembers of a comparison."""

    model: str | None
    adapters: list[str]
    turns: list[Conversation]  # one a pane, the base first
    sha256: list[str]  # of the adapter that each pane really used, "" for the base
    asked: str  # the question that is being answered


def with_prompt(turns: Sequence[Conversation], count: int, prompt: str, system: str) -> list[Conversation]:
    """Every pane's conversation with the new question at its end; a new one starts with the system message."""
    start: Conversation = [["system", system]] if system else []
    past = [turns[place] if place < len(turns) else start for place in range(count)]
    return [[*said, ["user", prompt]] for said in past]


def answered(turns: Sequence[Conversation], chunk: ChatChunk) -> list[Conversation]:
    """The conversations with the answers so far."""
    return [[*said, ["assistant", text]] for said, text in zip(turns, chunk.texts, strict=False)]


def pane_html(pane: ChatPane, said: Conversation, used: str | None, waiting: str, t: Translator) -> str:
    """One pane: its name, the adapter it really used (None while unknown), and its conversation.

    `waiting` stands in for an answer that has no word yet.
    """
    turns = [(role, text) for role, text in said if role != "system"]
    if waiting and turns and not turns[-1][1]:
        turns[-1] = (turns[-1][0], waiting)
    body = bubbles(turns, t) if turns else empty(t("compare.nothing"), t("compare.nothing_text"))
    return f'<div class="pane-head"><b>{esc(pane.label)}</b>{_used(used, t)}</div>{body}'


def _used(sha256: str | None, t: Translator) -> str:
    if sha256 is None:
        return ""
    words = f"sha256 {sha256[:12]}" if sha256 else t("compare.no_adapter")
    return f'<code title="{esc(sha256)}">{esc(words)}</code>'


def example_chips(prompts: Sequence[tuple[str, str]], t: Translator) -> str:
    """Buttons that put a (system message, question) of the training data into the form."""
    if not prompts:
        return ""
    chips = "".join(
        f'<button type="button" class="chip" data-id="{esc(prompt)}" data-action="{esc(system)}">{esc(prompt)}</button>'
        for system, prompt in prompts
    )
    return f'<div class="chips"><span>{esc(t("compare.examples"))}</span>{chips}</div>'


def first_question(turns: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """(system message, question) of a row of a dataset; None when nobody asks anything in it."""
    said: Mapping[str, str] = dict(reversed(turns))  # the first turn of every role
    return (said.get("system", ""), said["user"]) if said.get("user") else None
