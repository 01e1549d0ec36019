"""A file as records, with everything that is wrong with it. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from core.data.detection import Detection, detect, match_share, rule_of, unknown_columns
from core.data.formats import Format, formats
from core.data.inspection import Inspector
from core.data.problems import ERROR, Problem, RowError, excerpt
from core.data.readers import Row, read_rows
from core.data.records import Record
from core.data.turns import check_turns
from core.errors import ConfigError, DatasetError

DETECT_ROWS = 1000  # rows by which the format is picked; the share is then counted over all of them


@dataclass(frozen=True)
class Dataset:
    """The usable rows of a file, in its order, and the problems of the rows."""

    records: tuple[Record, ...]
    problems: tuple[Problem, ...]
    format: str
    rule: str  # in words: why this format
    share: float  # of the rows, those that have the columns of the format, 0 to 1
    sha256: str  # of the file

    def __len__(self) -> int:
        """How many rows can be trained on."""
        return len(self.records)


def load_dataset(path: Path, format: str | None = None, skip_bad_rows: bool = False) -> Dataset:
    """Read a dataset to train on; the format is detected unless it is given.

    Raises DatasetError at the first row with an error, unless bad rows are to be skipped, and when no row is usable.
    """
    dataset = inspect_dataset(path, format)
    errors = [problem for problem in dataset.problems if problem.level == ERROR]
    if errors and not skip_bad_rows:
        more = f" {len(errors) - 1:,} more rows have errors." if len(errors) > 1 else ""
        more = more.replace("1 more rows have", "1 more row has") if len(errors) == 2 else more
        raise DatasetError(f"{_place(path, errors[0])}: {errors[0].detail}{more}", "Fix the line, or skip bad rows.")
    if not dataset.records:
        raise DatasetError(
            f"No row of {path.name} can be used. {_place(path, errors[0])}: {errors[0].detail}",
            f"Fix the rows, or pick another format than {dataset.format}.",
        )
    return dataset


def inspect_dataset(path: Path, format: str | None = None) -> Dataset:
    """Read a dataset and list what is wrong with its rows; rows with an error are not among the records.

    Raises DatasetError for what concerns the whole file: unreadable, empty, or with columns of no known format.
    """
    path = Path(path)
    rows = (Row(row.number, _plain_names(row.values), row.problem) for row in read_rows(path))
    head = list(islice(rows, DETECT_ROWS))
    detection = _detection(head, path, format)
    reading = _Reading(formats.get(detection.format))
    for row in chain(head, rows):
        reading.add(row)
    return Dataset(
        records=tuple(reading.records),
        problems=tuple(reading.problems),
        format=detection.format,
        rule=detection.rule,
        share=reading.matched / reading.readable if reading.readable else 0.0,
        sha256=_sha256(path),
    )


def _detection(head: list[Row], path: Path, format: str | None) -> Detection:
    readable = [row.values for row in head if row.problem is None]
    if not readable:
        first = next(row.problem for row in head if row.problem)
        raise DatasetError(
            f"None of the first {len(head):,} rows of {path.name} can be read. {_place(path, first)}: {first.detail}",
            "Check that the file is what its suffix says.",
        )
    if format is None:
        return detect(readable)
    try:
        formats.get(format)
    except ConfigError as error:
        raise DatasetError(error.what, error.fix) from error
    share = match_share(readable, formats.get(format))
    if not share:
        raise unknown_columns(readable, f"{path.name} has no row in the format {format}")
    return Detection(format, f"chosen by you: {rule_of(format)}", share)


class _Reading:
    """Rows on their way to records."""

    def __init__(self, format: Format) -> None:
        self.format = format
        self.records: list[Record] = []
        self.problems: list[Problem] = []
        self.readable = 0
        self.matched = 0
        self._inspector = Inspector()

    def add(self, row: Row) -> None:
        """File one row under the records, the problems, or both."""
        if row.problem:
            self.problems.append(row.problem)
            return
        self.readable += 1
        self.matched += self.format.matches(row.values)
        try:
            record = self.format.record(row.number, row.values)
            if record.messages or not record.text:
                check_turns(record.messages)
        except RowError as error:
            self.problems.append(Problem(row.number, error.kind, ERROR, error.detail, excerpt(_shown(row.values))))
            return
        self.records.append(record)
        self.problems.extend(self._inspector.warnings(record))


def _plain_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Columns in lower case, without spaces around them ('Text ' is 'text'); of two made equal, the first stays."""
    plain: dict[str, Any] = {}
    for name, value in values.items():
        plain.setdefault(str(name).strip().lower(), value)
    return plain


def _shown(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}: {str(value)[:40]}" for name, value in islice(values.items(), 8))


def _place(path: Path, problem: Problem) -> str:
    unit = "Row" if path.suffix.lower() in (".parquet", ".xlsx") else "Line"
    return f"{unit} {problem.row:,} of {path.name}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["Dataset", "Problem", "inspect_dataset", "load_dataset"]
