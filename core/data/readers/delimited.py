"""Tables as text: .csv with quotes, .tsv with tabs. The first line names the columns. Torch-free."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.data.problems import RowError
from core.data.readers.lines import UTF8, read_lines
from core.data.readers.row import Row
from core.errors import DatasetError


def read_csv(path: Path, encoding: str = UTF8) -> Iterator[Row]:
    """Stream a .csv file divided by commas, or by semicolons or tabs where its first line has those and no comma.

    Raises DatasetError for a field that never ends (an unclosed quote), since that hides where the next row begins.
    """
    lines = _Lines(path, encoding)
    reader = csv.reader(lines, delimiter=_delimiter(lines.first), strict=True)
    header: list[str] = []
    while True:
        start = lines.number + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if lines.ended or "field limit" in str(error) or not header:
                raise _hopeless(path, start, error) from error
            yield _bad_row(start, lines, error)
            continue
        if fields is None:
            return
        if not any(field.strip() for field in fields):
            continue
        if header:
            yield _row(start, header, fields)
        else:
            header = _header(path, start, fields)


def read_tsv(path: Path, encoding: str = UTF8) -> Iterator[Row]:
    """Stream a .tsv file: a tab divides fields, a line end divides rows, and a quote is an ordinary character.

    Only a field that is quoted as a whole, in the way spreadsheets write it, loses its quotes.
    """
    header: list[str] = []
    for number, line in read_lines(path, encoding):
        if not line.strip():
            continue
        fields = [_unquoted(field) for field in line.removesuffix("\n").split("\t")]
        if header:
            yield _row(number, header, fields)
        else:
            header = _header(path, number, fields)


class _Lines:
    """The lines of a file for `csv.reader`, which knows how many of them it took."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.number = 0
        self.last = ""
        self.ended = False
        self._lines = read_lines(path, encoding)
        self._next = next(self._lines, None)
        self.first = self._next[1] if self._next else ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._next is None:
            self.ended = True
            raise StopIteration
        (self.number, self.last), self._next = self._next, next(self._lines, None)
        return self.last


def _delimiter(first_line: str) -> str:
    if "," in first_line:
        return ","
    return max((";", "\t", ","), key=first_line.count) if first_line.strip() else ","


def _header(path: Path, number: int, fields: Sequence[str]) -> list[str]:
    names = [field.strip() for field in fields]
    if not all(names):
        raise DatasetError(
            f"Line {number:,} of {path.name}: a column has no name.", "Name every column in the first line."
        )
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise DatasetError(
            f"Line {number:,} of {path.name}: two columns are called {repeated[:60]!r}.", "Give each its own name."
        )
    return names


def _row(number: int, header: Sequence[str], fields: Sequence[str]) -> Row:
    if len(fields) != len(header):
        detail = (
            f"The row has {len(fields):,} fields, but there are {len(header):,} columns; "
            "put quotes around text that holds the dividing character."
        )
        return Row.bad(number, RowError("ragged_row", detail), " | ".join(fields))
    return Row(number, dict(zip(header, fields, strict=True)))


def _bad_row(start: int, lines: _Lines, error: csv.Error) -> Row:
    span = f" Lines {start:,} to {lines.number:,} were taken for one row." if lines.number > start else ""
    return Row.bad(start, RowError("bad_csv", f"The quotes do not match: {error}.{span}"), lines.last)


def _unquoted(field: str) -> str:
    inner = field[1:-1].replace('""', "")
    quoted = len(field) >= 2 and field[0] == field[-1] == '"' and '"' not in inner
    return field[1:-1].replace('""', '"') if quoted else field


def _hopeless(path: Path, number: int, error: csv.Error) -> DatasetError:
    if "field limit" in str(error):
        return DatasetError(
            f"Line {number:,} of {path.name}: a field is longer than {csv.field_size_limit():,} characters. "
            "Perhaps a quote is never closed.",
            "Close the quote; texts that really are so long go into a .jsonl file.",
        )
    return DatasetError(
        f"The row that begins at line {number:,} of {path.name} cannot be read: a quote does not match ({error}).",
        "Close the quote, and double every quote inside a quoted field.",
    )
