"""JSON Lines: one object a line. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from core.data.problems import RowError
from core.data.readers.lines import UTF8, read_lines
from core.data.readers.row import Row, row_values
from core.data.readers.strict_json import parse_json
from core.errors import DatasetError


def read_json_lines(path: Path, encoding: str = UTF8) -> Iterator[Row]:
    """Stream a .jsonl file; blank lines are passed over. Raises DatasetError where the file is one JSON list."""
    first = True
    for number, line in read_lines(path, encoding):
        if not line.strip():
            continue
        if first and line.lstrip().startswith("[") and not line.rstrip().endswith("]"):
            raise DatasetError(
                f"{path.name} begins with a list, but a .jsonl file has one object {{...}} on each line.",
                "If the file is one JSON list of rows, rename it to end in .json.",
            )
        first = False
        yield _row(number, line)


def _row(number: int, line: str) -> Row:
    try:
        return Row(number, row_values(parse_json(line), "line"))
    except RowError as error:
        return Row.bad(number, error, line)
