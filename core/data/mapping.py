"""Columns of a file under other names, or inside objects and lists, found by paths such as `data.answers.0.text`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from core.data.text_values import Values

DEPTH = 4
_MISSING = object()


def mapped(values: Values, columns: Mapping[str, str]) -> dict[str, Any]:
    """A row with the columns of a format put in from where they are; what is not there is left out."""
    if not columns:
        return dict(values)
    found = {column: lookup(values, path) for column, path in columns.items()}
    kept = {name: value for name, value in values.items() if name not in columns}
    return {**kept, **{column: value for column, value in found.items() if value is not _MISSING}}


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
