"""JSON with what the standard parser lets through refused: NaN, repeated keys, half characters. Torch-free."""

from __future__ import annotations

import json
from typing import Any

from core.data.problems import RowError


def _refuse_constant(name: str) -> Any:
    raise RowError("bad_json", f"{name} is not JSON; use null or a number.")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for at, name in enumerate(names) if name in names[:at])
        raise RowError("bad_json", f"The key {repeated[:60]!r} appears twice in one object; remove one of them.")
    return values


DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats)


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises RowError (bad_json) that says where it breaks."""
    value, end = parse_json_at(text, _skip(text, 0))
    end = _skip(text, end)
    if end < len(text):
        raise RowError("bad_json", f"Column {end + 1:,}: there is more after the end of the JSON value.")
    return value


def parse_json_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at `start`, and where it ends. Raises RowError (bad_json)."""
    try:
        value, end = DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise BrokenJson(error.msg, error.pos) from error
    except RecursionError as error:
        raise RowError("bad_json", "The JSON is nested too deeply.") from error
    except RowError:
        raise
    except ValueError as error:  # int() refuses more than 4,300 digits
        raise RowError("bad_json", "A number has too many digits; write it as a string.") from error
    if "\\u" in text[start:end]:
        _refuse_surrogates(value)
    return value, end


class BrokenJson(RowError):
    """The text is not JSON from `position` on."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__("bad_json", f"Column {position + 1:,}: {message[:1].lower()}{message[1:]}.")
        self.message = message
        self.position = position


def _refuse_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise RowError("bad_json", "The JSON is nested too deeply.") from error
    except UnicodeEncodeError as error:
        raise RowError("bad_json", "A \\u escape is half of a surrogate pair, which is no character.") from error


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return at
