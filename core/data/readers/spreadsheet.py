"""Excel workbooks (.xlsx), through openpyxl, row by row. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from core.data.problems import RowError
from core.data.readers.row import Row
from core.errors import DatasetError

MAX_BYTES = 2_000_000_000  # unpacked: a workbook is a ZIP archive, of which a small one can hold much


def read_spreadsheet(path: Path, encoding: str = "") -> Iterator[Row]:
    """Stream the first sheet of a workbook, whose first row names the columns; a formula gives its stored value.

    Raises DatasetError when it is damaged, unpacks to more than `MAX_BYTES`, or openpyxl is missing.
    """
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise DatasetError(
            "Reading Excel files needs openpyxl, which is missing.", "Run: pip install 'lora-studio[excel]'"
        ) from error
    try:
        _refuse_bombs(path)
        book = load_workbook(path, read_only=True, data_only=True)
        try:
            yield from _rows(path, book.worksheets[0].iter_rows(values_only=True) if book.worksheets else ())
        finally:
            book.close()
    except (BadZipFile, OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, SyntaxError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DatasetError(
            f"{path.name} cannot be read as an Excel workbook: {reason}.", "Save it again as .xlsx, or as CSV UTF-8."
        ) from error


def _refuse_bombs(path: Path) -> None:
    with ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_BYTES:
        raise DatasetError(
            f"{path.name} unpacks to more than {MAX_BYTES // 10**9} GB.", "Divide the workbook into smaller ones."
        )


def _rows(path: Path, rows: Any) -> Iterator[Row]:
    header: list[str] = []
    for number, cells in enumerate(rows, start=1):
        if all(cell is None for cell in cells):
            continue
        if not header:
            header = _header(path, number, cells)
        elif any(cell is not None for cell in cells[len(header) :]):
            extra = RowError("ragged_row", f"The row has more cells than the {len(header):,} columns that have a name.")
            yield Row.bad(number, extra, " | ".join(str(cell) for cell in cells if cell is not None))
        else:
            filled = [*cells, *[None] * len(header)]
            yield Row(number, {name: _plain(cell) for name, cell in zip(header, filled, strict=False)})


def _header(path: Path, number: int, cells: Sequence[Any]) -> list[str]:
    names = ["" if cell is None else str(cell).strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    if not all(names):
        raise DatasetError(f"Row {number:,} of {path.name}: a column has no name.", "Name every column.")
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise DatasetError(
            f"Row {number:,} of {path.name}: two columns are called {repeated[:60]!r}.", "Give each its own name."
        )
    return names


def _plain(cell: Any) -> Any:
    """Dates and times as text, as no format knows them; whole numbers without a fraction."""
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)
    return cell if cell is None or isinstance(cell, (str, int, float, bool)) else str(cell)
