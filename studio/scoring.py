"""How good answers are against the expected ones: exactly, and field by field where JSON is expected."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Scores = dict[str, Any]


def score(expected: Sequence[str], given: Sequence[str], fields: Sequence[str] = ()) -> Scores:
    """Shares from 0 to 1 over all rows.

    `exact_match`: the same text, blanks around it aside. Where every expected answer is a JSON object, also
    `valid_json`: an object with all keys of the expected one; `fields`: each key's share of right values; and
    `named_fields`: all of `fields` right at once.
    """
    if not expected:
        return {}
    made: Scores = {"exact_match": _share([a.strip() == b.strip() for a, b in zip(expected, given, strict=True)])}
    wanted = [as_object(text) for text in expected]
    if not all(wanted):
        return made
    found = [as_object(text) or {} for text in given]
    pairs = [(want or {}, have) for want, have in zip(wanted, found, strict=True)]
    made["valid_json"] = _share([want.keys() <= have.keys() for want, have in pairs])
    keys = list(dict.fromkeys(key for want, _ in pairs for key in want))
    made["fields"] = {key: _share([_same(want, have, key) for want, have in pairs if key in want]) for key in keys}
    if fields:
        made["named_fields"] = _share([all(_same(want, have, key) for key in fields) for want, have in pairs])
    return made


def as_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is, the whole of it; None when it is not one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _same(want: Mapping[str, Any], have: Mapping[str, Any], key: str) -> bool:
    return key in want and key in have and bool(want[key] == have[key])


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)
