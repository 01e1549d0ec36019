"""Lists of turns, as chat formats write them, and the order turns must have. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.data.problems import RowError
from core.data.records import Message
from core.data.text_values import kind_of

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip


def read_turns(items: Sequence[Any], role_key: str, text_key: str) -> tuple[Message, ...]:
    """Messages from a list of objects. Raises RowError: wrong_type, missing_field."""
    return tuple(_turn(number, item, role_key, text_key) for number, item in enumerate(items, start=1))


def _turn(number: int, item: Any, role_key: str, text_key: str) -> Message:
    if not isinstance(item, Mapping):
        raise RowError("wrong_type", f"Turn {number} is {kind_of(item)}; it must be an object with '{role_key}'.")
    for key in (role_key, text_key):
        if item.get(key) is None:
            raise RowError("missing_field", f"Turn {number} has no '{key}'.")
    role = item[role_key]
    if not isinstance(role, str) or role.strip().lower() not in ROLES:
        raise RowError("wrong_type", f"Turn {number} has the role {str(role)[:40]!r}; known are: {', '.join(ROLES)}.")
    return Message(ROLES[role.strip().lower()], _content(number, item[text_key], text_key))


def _content(number: int, content: Any, key: str) -> str:
    """A text, or a list of text parts as OpenAI writes them."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        return "".join(part["text"] for part in content)
    raise RowError("wrong_type", f"Turn {number}: '{key}' holds {kind_of(content)} where a text is needed.")


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def check_turns(messages: Sequence[Message]) -> None:
    """Refuse what cannot be trained on. Raises RowError: no_assistant, role_order, missing_field, empty_answer.

    The order is: perhaps a system turn, then user and assistant by turns, the user first.
    """
    if not any(turn.role == "assistant" for turn in messages):
        raise RowError("no_assistant", "No turn is the assistant's, so there is nothing to learn.")
    spoken = messages[1:] if messages[0].role == "system" else messages
    shift = 1 + len(messages) - len(spoken)
    for number, turn in enumerate(spoken):
        wanted = ("user", "assistant")[number % 2]
        if turn.role != wanted:
            raise RowError("role_order", f"Turn {number + shift} is the {turn.role}'s; it should be the {wanted}'s.")
        if not turn.content.strip():
            kind = "empty_answer" if wanted == "assistant" else "missing_field"
            raise RowError(kind, f"Turn {number + shift}, the {wanted}'s, is empty.")
