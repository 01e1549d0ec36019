"""Lists of turns, as chat formats write them, and the order turns must have. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.data.problems import RowError
from core.data.records import Message
from core.data.text_values import kind_of
from core.data.tool_calls import calls_in, read_call

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
_PLAIN = ("system", "user", "assistant")
CALL = "function_call"  # ShareGPT's role for a turn that is nothing but a tool call


def read_turns(items: Sequence[Any], role_key: str, text_key: str) -> tuple[Message, ...]:
    """Messages from a list of objects. Raises RowError: wrong_type, missing_field."""
    return tuple(_turn(number, item, role_key, text_key) for number, item in enumerate(items, start=1))


def any_turns(items: Sequence[Any]) -> tuple[Message, ...]:
    """Messages from objects with 'role' and 'content', or 'from' and 'value', or from texts that take turns.

    Raises RowError: wrong_type, missing_field.
    """
    if items and all(isinstance(item, str) for item in items):
        return alternating(items)
    shared = bool(items) and isinstance(items[0], Mapping) and "from" in items[0] and "role" not in items[0]
    return read_turns(items, "from", "value") if shared else read_turns(items, "role", "content")


def alternating(texts: Sequence[str]) -> tuple[Message, ...]:
    """Texts as the user's and the assistant's by turns, the user first."""
    return tuple(Message(("user", "assistant")[number % 2], text) for number, text in enumerate(texts))


def _turn(number: int, item: Any, role_key: str, text_key: str) -> Message:
    if not isinstance(item, Mapping):
        raise RowError("wrong_type", f"Turn {number} is {kind_of(item)}; it must be an object with '{role_key}'.")
    given, said = item.get(role_key), item.get(text_key)
    if type(said) is str and given in _PLAIN and not item.get("tool_calls") and not item.get("function_call"):
        return Message(given, said)  # as most turns are
    calls = calls_in(number, item)
    for key in (role_key, text_key):
        if item.get(key) is None and not (key == text_key and calls):
            raise RowError("missing_field", f"Turn {number} has no '{key}'.")
    if given == CALL:
        return Message("assistant", "", (read_call(number, item[text_key]),))
    if not isinstance(given, str) or given.strip().lower() not in ROLES:
        raise RowError("wrong_type", f"Turn {number} has the role {str(given)[:40]!r}; known are: {', '.join(ROLES)}.")
    role, content = ROLES[given.strip().lower()], _content(number, item.get(text_key), text_key)
    name, call_id = (str(item.get(key) or "") if role == "tool" else "" for key in ("name", "tool_call_id"))
    return Message(role, content, calls if role == "assistant" else (), name, call_id)


def _content(number: int, content: Any, key: str) -> str:
    """A text, or a list of text parts as OpenAI writes them; nothing beside a tool call."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        return "".join(part["text"] for part in content)
    raise RowError("wrong_type", f"Turn {number}: '{key}' holds {kind_of(content)} where a text is needed.")


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def check_turns(messages: Sequence[Message]) -> None:
    """Refuse what cannot be trained on. Raises RowError: no_assistant, role_order, missing_field, empty_answer.

    The order is: perhaps a system turn, then user and assistant by turns, the user first. An assistant that calls
    tools is answered by them, and speaks again.
    """
    if not any(turn.role == "assistant" for turn in messages):
        raise RowError("no_assistant", "No turn is the assistant's, so there is nothing to learn.")
    wanted: tuple[str, ...] = ("system", "user")
    for number, turn in enumerate(messages, start=1):
        if turn.role not in wanted:
            named = " or the ".join(f"{role}'s" for role in wanted if role != "system")
            raise RowError("role_order", f"Turn {number} is the {turn.role}'s; it should be the {named}.")
        if turn.role in ("user", "assistant") and not (turn.content.strip() or turn.tool_calls):
            kind = "empty_answer" if turn.role == "assistant" else "missing_field"
            raise RowError(kind, f"Turn {number}, the {turn.role}'s, is empty.")
        wanted = _next_roles(turn)


def _next_roles(turn: Message) -> tuple[str, ...]:
    if turn.role == "assistant":
        return ("tool",) if turn.tool_calls else ("user",)
    return {"system": ("user",), "user": ("assistant",), "tool": ("assistant", "tool")}[turn.role]
