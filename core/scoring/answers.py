"""How good texts are against the expected ones: exactly, field by field where JSON is expected, and by shared words."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Scores = dict[str, Any]
_ARTICLES = frozenset({"a", "an", "the"})
_MARKS = frozenset("。，、；：？！「」『』（）《》“”‘’…—·«»¿¡")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


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


def token_f1(expected: Sequence[str], given: Sequence[str]) -> float:
    """Mean over the answers of F1 between the words of both, as SQuAD counts them (Rajpurkar et al. 2016, section 6.1).

    Case, punctuation and English articles do not count; Chinese, Japanese and Korean characters are words by
    themselves.
    """
    if not expected:
        return 0.0
    return sum(_f1(words(want), words(have)) for want, have in zip(expected, given, strict=True)) / len(expected)


def words(text: str) -> list[str]:
    """The words of a text that count when answers are compared."""
    plain = "".join(" " if sign in string.punctuation or sign in _MARKS else sign for sign in text.lower())
    spaced = _CJK.sub(r" \g<0> ", plain)
    return [word for word in spaced.split() if word not in _ARTICLES]


def _f1(want: Sequence[str], have: Sequence[str]) -> float:
    if not want or not have:
        return float(want == have)
    common = sum((Counter(want) & Counter(have)).values())
    return 2 * common / (len(want) + len(have))
