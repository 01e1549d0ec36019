"""Uploaded files on their way into the library: copied once, read strictly, and never changed again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from core.data.dataset import Dataset, inspect_dataset, load_dataset
from core.data.records import Record
from core.errors import DatasetError, DiskFullError
from studio.artifacts import Library
from studio.show import SHOWN_PROBLEMS
from studio.tables import DatasetRow
from studio.views import DatasetView, PreviewRow, ProblemView
from studio.workspace import Workspace, new_id

MAX_BYTES = 2 * 2**30


class DatasetShelf:
    """The datasets of one workspace, as files."""

    def __init__(self, workspace: Workspace, library: Library) -> None:
        self.workspace = workspace
        self.library = library
        self._records = lru_cache(maxsize=4)(self._read)

    def inspect(self, path: Path, format: str | None) -> DatasetView:
        """What `add` would make of a file, with every problem, adding nothing; DatasetError when it is unreadable."""
        _refuse_size(path)
        data = inspect_dataset(path, format)
        return DatasetView(
            id="",
            name=path.stem,
            file_name=path.name,
            format=data.format,
            rule=data.rule,
            share=data.share,
            rows=len(data),
            bad_rows=_bad_rows(data),
            sha256=data.sha256,
            size_bytes=path.stat().st_size,
            created_at=0.0,
            problems=tuple(ProblemView(**asdict(problem)) for problem in data.problems[:SHOWN_PROBLEMS]),
        )

    def add(self, path: Path, name: str, format: str | None, skip_bad_rows: bool) -> DatasetRow:
        """Copy a file into the workspace and file it; the same content under the same name is filed only once."""
        _refuse_size(path)
        data = load_dataset(path, format, skip_bad_rows)
        name = name.strip() or path.stem
        for known in self.library.datasets():
            if (known.sha256, known.name, known.format) == (data.sha256, name, data.format):
                return known
        row = DatasetRow(
            id=new_id(),
            name=name,
            file_name=path.name,
            stored_name=f"data{path.suffix.lower()}",
            format=data.format,
            rule=data.rule,
            share=data.share,
            rows=len(data),
            bad_rows=_bad_rows(data),
            skip_bad_rows=skip_bad_rows,
            sha256=data.sha256,
            size_bytes=path.stat().st_size,
            problems=[asdict(problem) for problem in data.problems[:SHOWN_PROBLEMS]],
        )
        self._copy(path, row)
        self.library.add(row)
        return row

    def records(self, dataset_id: str) -> Sequence[Record]:
        """Every usable row of a dataset; the last few datasets are kept in memory."""
        return self._records(dataset_id)

    def preview(self, dataset_id: str, start: int, count: int) -> list[PreviewRow]:
        """Some rows as conversations."""
        chosen = self.records(dataset_id)[max(0, start) : max(0, start) + count]
        return [
            PreviewRow(record.row, tuple((m.role, m.content) for m in record.messages) or (("text", record.text),))
            for record in chosen
        ]

    def _read(self, dataset_id: str) -> Sequence[Record]:
        row = self.library.dataset(dataset_id)
        path = self.workspace.dataset_folder(row.id) / row.stored_name
        return load_dataset(path, row.format, row.skip_bad_rows).records

    def _copy(self, path: Path, row: DatasetRow) -> None:
        scratch = self.workspace.tmp / f"dataset-{row.id}"
        try:
            scratch.mkdir(mode=0o700)
            shutil.copyfile(path, scratch / row.stored_name)
            scratch.rename(self.workspace.dataset_folder(row.id))
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise DiskFullError(
                f"{path.name} could not be stored: {error.strerror}.", "Free some disk space."
            ) from error


def _bad_rows(data: Dataset) -> int:
    return len({problem.row for problem in data.problems if problem.level == "error"})


def _refuse_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError:
        raise DatasetError(f"There is no file {path.name!r}.", "Check the path.") from None
    if size > MAX_BYTES:
        raise DatasetError(f"{path.name} has {size / 2**30:.1f} GiB; the limit is 2 GiB.", "Split the file.")
