"""Tools that an assistant may call, and its calls, as chat files write them. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from core.data.problems import RowError
from core.data.readers.strict_json import parse_json
from core.data.records import ToolCall
from core.data.text_values import Values, kind_of


def tools_in(values: Values) -> str:
    """The row's tools as a JSON list, "" for none; OpenAI's form or bare functions. Raises RowError: wrong_type."""
    given = _parsed(values.get("tools") or values.get("functions") or [])
    if not isinstance(given, list) or not all(isinstance(tool, Mapping) for tool in given):
        raise RowError("wrong_type", f"The column 'tools' holds {kind_of(given)} where a list of tools is needed.")
    tools = [_without_nothing(tool if "function" in tool else {"type": "function", "function": tool}) for tool in given]
    for tool in tools:
        if not (isinstance(tool["function"], Mapping) and isinstance(tool["function"].get("name"), str)):
            raise RowError("wrong_type", "A tool has no name.")
    return json.dumps(tools, ensure_ascii=False) if tools else ""


def calls_in(number: int, item: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """The tool calls of turn `number`: OpenAI's `tool_calls`, or its old `function_call`. Raises RowError."""
    given = _parsed(item.get("tool_calls") or [])
    if item.get("function_call"):
        given = [*given, item["function_call"]]
    if not isinstance(given, list):
        raise RowError("wrong_type", f"Turn {number}: 'tool_calls' holds {kind_of(given)} where a list is needed.")
    return tuple(read_call(number, call) for call in given)


def read_call(number: int, call: Any) -> ToolCall:
    """One call, from an object or its JSON. Raises RowError: wrong_type, bad_json."""
    call = _parsed(call)
    inner = _parsed(call.get("function") or call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise RowError("wrong_type", f"Turn {number}: a tool call has no name.")
    arguments = _parsed(inner.get("arguments") or {})
    if not isinstance(arguments, Mapping):
        raise RowError("wrong_type", f"Turn {number}: the arguments of {inner['name'][:40]!r} are no JSON object.")
    text = json.dumps(_without_nothing(arguments), ensure_ascii=False)
    return ToolCall(inner["name"], text, str(call.get("id") or ""))


def _parsed(value: Any) -> Any:
    return parse_json(value) if isinstance(value, str) and value.lstrip()[:1] in ("{", "[") else value


def _without_nothing(value: Any) -> Any:
    """Parquet gives every object all the keys that any of them has; those without a value go."""
    if isinstance(value, Mapping):
        return {key: _without_nothing(inner) for key, inner in value.items() if inner is not None}
    return [_without_nothing(inner) for inner in value] if isinstance(value, list) else value
