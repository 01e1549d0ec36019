"""Reading rows from files, one file type a module, as streams and in bounded memory. Torch-free.

Nothing is guessed: text is in the encoding that was named, UTF-8 unless another was, or refused; and every error names
the line and what to do about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from core.data.readers.delimited import read_csv, read_tsv
from core.data.readers.json_lines import read_json_lines
from core.data.readers.json_list import read_json_list
from core.data.readers.lines import ENCODINGS, UTF8, EncodingError
from core.data.readers.parquet import read_parquet
from core.data.readers.plain_text import read_plain_text
from core.data.readers.row import Row
from core.data.readers.spreadsheet import read_spreadsheet
from core.errors import DatasetError

Reader = Callable[[Path, str], Iterator[Row]]  # of a file, with the encoding of its text if it is one

READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".json": read_json_list,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".txt": read_plain_text,
    ".parquet": read_parquet,
    ".xlsx": read_spreadsheet,
}


def read_rows(path: Path, encoding: str = UTF8) -> Iterator[Row]:
    """Stream the rows of a file, by its suffix.

    A row that cannot be read comes with its problem. What concerns the whole file raises DatasetError: it is missing,
    empty, of an unknown type, of another encoding, or damaged in a way that hides where the next row begins.
    """
    reader = reader_of(path)
    found = False
    for row in reader(path, encoding):
        found = True
        yield row
    if not found:
        raise DatasetError(f"{path.name} has no rows.", "Choose a file with at least one row of data.")


def reader_of(path: Path) -> Reader:
    """The reader for a file. Raises DatasetError for a missing file and an unknown type."""
    if path.suffix.lower() not in READERS:
        kinds = ", ".join(READERS)
        raise DatasetError(f"{path.name} is not a type of file that can be read.", f"Save it as one of: {kinds}.")
    if not path.is_file():
        raise DatasetError(f"There is no file {path.name}.", "Check the name and the folder.")
    if not path.stat().st_size:
        raise DatasetError(f"{path.name} is empty.", "Choose a file with at least one row of data.")
    return READERS[path.suffix.lower()]


__all__ = ["ENCODINGS", "READERS", "UTF8", "EncodingError", "Reader", "Row", "read_rows", "reader_of"]
