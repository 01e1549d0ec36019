"""Mending rows, where the user asks for it; nothing here guesses what an answer should have been. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from core.data.problems import RowError
from core.data.records import Message, Record
from core.data.text_values import Values

_GAP = "\n\n"


def written_out(values: Values) -> dict[str, Any]:
    """A row's numbers and yes/no as text."""
    return {name: str(value) if isinstance(value, (bool, float)) else value for name, value in values.items()}


def repaired_turns(record: Record, kind: str) -> Record:
    """A conversation in an order that can be trained on; for an empty answer, what comes before it.

    Raises RowError (no_assistant) when nothing is left to learn.
    """
    mend = _before_the_first_empty_answer if kind == "empty_answer" else _in_order
    turns = mend(record.messages)
    if not any(turn.role == "assistant" for turn in turns):
        raise RowError("no_assistant", "Nothing to learn is left when the row is mended.")
    return replace(record, messages=turns)


def _before_the_first_empty_answer(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    empty = next(
        place
        for place, turn in enumerate(turns)
        if turn.role == "assistant" and not (turn.content.strip() or turn.tool_calls)
    )
    kept = list(turns[:empty])
    while kept and (kept[-1].role != "assistant" or kept[-1].tool_calls):
        kept.pop()
    return tuple(kept)


def _in_order(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The system's words first and together; from the first question on, turns of one speaker joined."""
    system = _GAP.join(turn.content for turn in turns if turn.role == "system" and turn.content.strip())
    spoken: list[Message] = []
    for turn in turns:
        if turn.role == "system" or not (turn.content.strip() or turn.tool_calls or turn.role == "tool"):
            continue
        if not spoken and turn.role != "user":
            continue
        if spoken and spoken[-1].role == turn.role != "tool" and not (spoken[-1].tool_calls or turn.tool_calls):
            spoken[-1] = replace(turn, content=spoken[-1].content + _GAP + turn.content)
        else:
            spoken.append(turn)
    return (Message("system", system), *spoken) if system else tuple(spoken)


def with_texts(record: Record, change: Callable[[str], str]) -> Record:
    """The record with every text of it changed."""

    def turns(messages: tuple[Message, ...]) -> tuple[Message, ...]:
        return tuple(replace(message, content=change(message.content)) for message in messages)

    return replace(record, messages=turns(record.messages), text=change(record.text), rejected=turns(record.rejected))
