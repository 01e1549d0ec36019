"""Plain text: every line that is not blank is a row. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from core.data.readers.lines import UTF8, read_lines
from core.data.readers.row import Row


def read_plain_text(path: Path, encoding: str = UTF8) -> Iterator[Row]:
    """Stream a .txt file; each row has one column, `text`."""
    for number, line in read_lines(path, encoding):
        if line.strip():
            yield Row(number, {"text": line.removesuffix("\n")})
