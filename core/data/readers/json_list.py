"""A JSON list of rows, or an object with the rows under "data", read piece by piece. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.data.problems import RowError
from core.data.readers.lines import MAX_LINE_BYTES, UTF8, read_lines
from core.data.readers.row import Row, row_values
from core.data.readers.strict_json import BrokenJson, parse_json_at
from core.errors import DatasetError

MAX_VALUE_LENGTH = MAX_LINE_BYTES  # characters


def read_json_list(path: Path, encoding: str = UTF8) -> Iterator[Row]:
    """Stream a .json file. Raises DatasetError at the first place that is not JSON, as no later row can be found."""
    text = _Text(path, encoding)
    first = text.peek()
    if first == "[":
        yield from _rows(text)
    elif first == "{":
        yield from _rows_of_object(text)
    else:
        raise text.error("expecting a list of rows [...]")
    if text.peek():
        raise text.error("there is more after the end of the rows")


def _rows(text: _Text) -> Iterator[Row]:
    text.take("[")
    while text.peek() != "]":
        yield _row(text)
        if text.peek() != "]":
            text.take(",")
            if text.peek() == "]":
                raise text.error("there is a comma after the last row")
    text.take("]")


def _row(text: _Text) -> Row:
    text.peek()
    line = text.line
    try:
        return Row(line, row_values(text.value(), "row"))
    except RowError as error:
        return Row.bad(line, error, "")


def _rows_of_object(text: _Text) -> Iterator[Row]:
    """Rows under "data"; other keys, such as a version, are passed over."""
    text.take("{")
    found = False
    while text.peek() != "}":
        if text.peek() != '"':
            raise text.error("expecting the name of a key in double quotes")
        key = _outside_rows(text)
        text.take(":")
        if key == "data" and text.peek() == "[":
            if found:
                raise text.error("the key 'data' appears twice")
            found = True
            yield from _rows(text)
        else:
            _outside_rows(text)
        if text.peek() != "}":
            text.take(",")
    text.take("}")
    if not found:
        raise DatasetError(
            f'{text.name} is one object without a list under "data".',
            "Put the rows in a list: [ {...}, {...} ]. If each line is an object, rename the file to end in .jsonl.",
        )


def _outside_rows(text: _Text) -> Any:
    try:
        return text.value()
    except RowError as error:
        raise text.error(error.detail) from error


class _Text:
    """The file's text, of which only the part being parsed is in memory."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.name = path.name
        self.line = 1  # of the next character
        self._lines = read_lines(path, encoding)
        self._buffer = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is not white space, without taking it; "" at the end of the file."""
        while True:
            while self._at < len(self._buffer):
                char = self._buffer[self._at]
                if char not in " \t\n\r":
                    return char
                self._advance(self._at + 1)
            if not self._read(1):
                return ""

    def take(self, expected: str) -> None:
        """Take the next character, which must be `expected`."""
        found = self.peek()
        if found != expected:
            raise self.error(f"expecting {expected!r}, found {found or 'the end of the file'!r}")
        self._advance(self._at + 1)

    def value(self) -> Any:
        """Take a JSON value, reading more and more of the file until it is whole.

        Raises RowError for a value that is refused but whose end is known, else DatasetError.
        """
        self.peek()
        wanted = 1 << 16
        while True:
            more = self._read(wanted)
            try:
                value, end = parse_json_at(self._buffer, self._at)
                if end < len(self._buffer) or not more:  # a number could go on in the next line
                    self._advance(end)
                    return value
            except BrokenJson as error:
                if not more:
                    raise self._broken(error) from error
            except RowError as error:
                if self._skipped():
                    raise
                if not more:
                    raise self.error(error.detail) from error
            if len(self._buffer) - self._at > MAX_VALUE_LENGTH:
                raise self.error(f"a row is broken, or longer than {MAX_VALUE_LENGTH:,} characters")
            wanted *= 2

    def error(self, what: str) -> DatasetError:
        """A DatasetError at the next character."""
        fix = "Fix the file there. If each line is an object of its own, rename the file to end in .jsonl."
        return DatasetError(f"Line {self.line:,} of {self.name}: {what.rstrip('.')}.", fix)

    def _skipped(self) -> bool:
        """Pass over a value that is refused, if its end can be found."""
        try:
            _, end = json.JSONDecoder().raw_decode(self._buffer, self._at)
        except (ValueError, RecursionError):
            return False
        self._advance(end)
        return True

    def _broken(self, error: BrokenJson) -> DatasetError:
        self._advance(min(error.position, len(self._buffer)))
        return self.error(error.message[:1].lower() + error.message[1:])

    def _advance(self, to: int) -> None:
        self.line += self._buffer.count("\n", self._at, to)
        self._at = to

    def _read(self, wanted: int) -> bool:
        """Have at least `wanted` characters ahead; False when the file ends before that."""
        ahead = [self._buffer[self._at :]]
        length = len(ahead[0])
        if length >= wanted:
            return True
        self._at = 0
        while length < wanted:
            line = next(self._lines, None)
            if line is None:
                self._buffer = "".join(ahead)
                return False
            ahead.append(line[1])
            length += len(line[1])
        self._buffer = "".join(ahead)
        return True
