"""Files as records, with everything that is wrong with them. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.data.problems import Problem
from core.data.recipe import Recipe
from core.data.records import Record
from core.data.scan import Scan, place
from core.errors import DatasetError


@dataclass(frozen=True)
class Dataset:
    """The usable rows of the files, in their order, and the problems of the rows."""

    records: tuple[Record, ...]
    problems: tuple[Problem, ...]  # the first 200 of each kind
    format: str
    rule: str  # in words: why this format
    share: float  # of the rows, those that have the columns of the format, 0 to 1
    sha256: str  # of the file, or of the files' digests
    counts: Mapping[str, int] = field(default_factory=dict)  # kind of problem -> rows

    def __len__(self) -> int:
        """How many rows can be trained on."""
        return len(self.records)


def load_dataset(
    path: Path | Sequence[Path], format: str | None = None, skip_bad_rows: bool = False, recipe: Recipe | None = None
) -> Dataset:
    """Read a dataset to train on, of one file or several; the format is detected unless it is given.

    Raises DatasetError at the first row with an error, unless bad rows are to be skipped, and when no row is usable.
    `recipe` says more about how to read; then `format` is taken from it.
    """
    paths, recipe = _paths(path), recipe or Recipe(format)
    scan = Scan(paths, recipe.skipping_errors() if skip_bad_rows else recipe)
    dataset = _collected(scan)
    refuse_errors(scan)
    return dataset


def inspect_dataset(path: Path | Sequence[Path], format: str | None = None, recipe: Recipe | None = None) -> Dataset:
    """Read a dataset and list what is wrong with its rows; rows with an error are not among the records.

    Raises DatasetError for what concerns a whole file: unreadable, empty, or with columns of no known format.
    """
    return _collected(Scan(_paths(path), recipe or Recipe(format)))


def refuse_errors(scan: Scan) -> None:
    """Raise DatasetError for the first row that nothing was said about, or when no row is left."""
    first = scan.first_stop
    if first is not None:
        what = f"{place(_file_of(scan, first), first)}: {first.detail}"
        if scan.stopped > 1:
            what = f"{what} Rows with errors in all: {scan.stopped:,}."
        raise DatasetError(what, "Fix the line, or skip bad rows.")
    if not scan.kept:
        names = " and ".join(path.name for path in scan.paths)
        worst = scan.problems[0]
        raise DatasetError(
            f"No row of {names} can be used. {place(_file_of(scan, worst), worst)}: {worst.detail}",
            f"Fix the rows, or pick another format than {scan.format}.",
        )


def files_sha256(paths: Sequence[Path]) -> str:
    """The sha256 of a file; of several, that of their digests, one a line."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _collected(scan: Scan) -> Dataset:
    records = tuple(verdict.record for verdict in scan if verdict.record is not None)
    return Dataset(
        records, scan.problems, scan.format, scan.rule, scan.share, files_sha256(scan.paths), dict(scan.counts)
    )


def _paths(path: Path | Sequence[Path]) -> list[Path]:
    paths = [Path(path)] if isinstance(path, (str, Path)) else [Path(one) for one in path]
    if not paths:
        raise DatasetError("No file is named.", "Choose at least one.")
    names = [one.name for one in paths]
    if len(set(names)) < len(names):
        raise DatasetError("Two of the files have the same name.", "Rename one, so that rows can be told apart.")
    return paths


def _file_of(scan: Scan, problem: Problem) -> Path:
    return next((path for path in scan.paths if path.name == problem.file), scan.paths[0])


__all__ = ["Dataset", "Problem", "Recipe", "files_sha256", "inspect_dataset", "load_dataset", "refuse_errors"]
