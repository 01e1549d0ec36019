"""Parquet, through pyarrow, a few rows at a time. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.data.readers.lines import MAX_LINE_BYTES
from core.data.readers.row import Row
from core.errors import DatasetError

BATCH_ROWS = 32
MAX_BYTES = 2_000_000_000  # of all rows, unpacked: a file of some KB can hold many GB
MAX_GROWTH = 500  # unpacked bytes for each byte of the file, above what is harmless; real texts grow tenfold
HARMLESS_BYTES = 100_000_000


def read_parquet(path: Path, encoding: str = "") -> Iterator[Row]:
    """Stream a .parquet file. Raises DatasetError when it is damaged or unpacks to more than `MAX_BYTES`."""
    try:
        import pyarrow as arrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DatasetError("Reading parquet needs pyarrow, which is missing.", "Run: pip install pyarrow") from error
    try:
        with ParquetFile(path, pre_buffer=False) as file:
            _refuse_repeated_columns(path, file.schema_arrow.names)
            yield from _rows(path, file)
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DatasetError(
            f"{path.name} cannot be read as parquet: {str(error).splitlines()[0][:200]}", "Export the file again."
        ) from error


def _rows(path: Path, file: Any) -> Iterator[Row]:
    number, total = 0, 0
    cap = min(MAX_BYTES, max(HARMLESS_BYTES, MAX_GROWTH * path.stat().st_size))
    for batch in file.iter_batches(batch_size=BATCH_ROWS):
        size = sum(_unpacked_bytes(column) for column in batch.columns)
        total += size
        if total > cap or size > BATCH_ROWS * MAX_LINE_BYTES:
            raise DatasetError(
                f"{path.name} unpacks to too much text: row {number + 1:,} is past {cap // 10**6:,} MB.",
                "Divide the file into smaller ones.",
            )
        for values in batch.to_pylist():
            number += 1
            yield Row(number, values)


def _unpacked_bytes(column: Any) -> int:
    """Bytes of a column once every row has its own copy; of a dictionary, its rows may share one long text."""
    if not hasattr(column, "dictionary"):
        return int(column.nbytes)
    if column.dictionary.nbytes > MAX_LINE_BYTES:  # decoding could take this much for every row
        return int(column.dictionary.nbytes * len(column))
    return int(column.dictionary_decode().nbytes)


def _refuse_repeated_columns(path: Path, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DatasetError(f"Two columns of {path.name} are called {name!r}.", "Give each its own name.")
