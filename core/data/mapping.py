"""Columns of a file under other names, or inside objects and lists, found by paths such as `data.answers.0.text`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from core.data.text_values import Values

DEPTH = 4
# What Chinese tables call the columns of the formats; of a format's own synonyms the format knows.
CHINESE = {
    name: column
    for column, names in {
        "question": ("问题", "提问", "问"), "answer": ("答案", "回答", "答"), "context": ("上下文", "背景", "段落"),
        "instruction": ("指令", "指示"), "input": ("输入",), "output": ("输出",), "history": ("历史",),
        "prompt": ("提示", "提示词"), "completion": ("补全", "续写"), "response": ("回复", "响应"),
        "text": ("文本", "正文", "内容"), "label": ("标签", "类别", "分类"), "source": ("原文",), "target": ("译文",),
        "system": ("系统", "系统提示", "系统提示词"), "messages": ("消息",),
        "conversations": ("对话",), "tools": ("工具",),
        "chosen": ("较好的回答", "更好的回答", "好的回答"), "rejected": ("较差的回答", "更差的回答", "差的回答"),
    }.items()
    for name in names
}  # fmt: skip
_MISSING = object()


def mapped(values: Values, columns: Mapping[str, str]) -> dict[str, Any]:
    """A row with the columns of a format put in from where they are; what is not there is left out."""
    if not columns:
        return usual_names(values)
    found = {column: lookup(values, path) for column, path in columns.items()}
    kept = {name: value for name, value in values.items() if name not in columns}
    return {**usual_names(kept), **{column: value for column, value in found.items() if value is not _MISSING}}


def usual_names(values: Values) -> dict[str, Any]:
    """A row with its Chinese columns under the names that formats give them, where no other column has that name."""
    named: dict[str, Any] = {}
    for name, value in values.items():
        usual = CHINESE.get(name, name)
        named[name if usual in values or usual in named else usual] = value
    return named


def lookup(values: Any, path: str) -> Any:
    """The value at a path: keys of objects and places of lists, from 0, divided by dots; a key may hold dots itself."""
    if path in ("", None):
        return _MISSING
    if isinstance(values, Mapping):
        if path in values:
            return values[path]
        for end in (at for at, char in enumerate(path) if char == "."):
            if path[:end] in values:
                return lookup(values[path[:end]], path[end + 1 :])
        return _MISSING
    first, _, rest = path.partition(".")
    if isinstance(values, list) and first.isdecimal() and int(first) < len(values):
        return lookup(values[int(first)], rest) if rest else values[int(first)]
    return _MISSING


def paths_in(rows: Iterable[Values]) -> dict[str, Any]:
    """Every path that leads somewhere in the rows, with its first value that is not empty."""
    found: dict[str, Any] = {}
    for values in rows:
        for path, value in _walk(values, "", DEPTH):
            if path not in found or found[path] in (None, "", [], {}):
                found[path] = value
    return found


def _walk(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if path:
        yield path, value
    if not depth:
        return
    start = f"{path}." if path else ""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _walk(inner, f"{start}{name}", depth - 1)
    elif isinstance(value, list) and value:
        yield from _walk(value[0], f"{start}0", depth - 1)
