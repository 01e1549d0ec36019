"""Uploaded files on their way into the library: copied once, read strictly, and never changed again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

from core.data.dataset import files_sha256, refuse_errors
from core.data.mapping import paths_in
from core.data.readers import UTF8, read_rows
from core.data.recipe import Recipe
from core.data.record_file import RecordWriter
from core.data.records import Message, Record
from core.data.scan import Scan, Verdict, plain_names
from core.errors import DatasetError, DiskFullError
from studio.artifacts import Library
from studio.dataset_files import (
    RECORDS,
    Manifest,
    copy,
    open_dataset,
    read_manifest,
    stored_names,
    write_manifest,
)
from studio.show import SHOWN_PROBLEMS, dataset_view, problem_view
from studio.tables import DatasetRow
from studio.views import DatasetView, PreviewRow
from studio.workspace import Workspace, new_id

MAX_BYTES = 2 * 2**30
REPORT_ROWS = 2000  # between two reports of progress
BAD_ROWS_BYTES = 100_000_000
COLUMN_ROWS = 50  # by which the columns of a file are listed

T = TypeVar("T")
Progress = Generator[int, None, T]  # yields the rows read so far, returns what came of it


class DatasetShelf:
    """The datasets of one workspace, as files."""

    def __init__(self, workspace: Workspace, library: Library) -> None:
        self.workspace = workspace
        self.library = library
        self._records = lru_cache(maxsize=4)(self._read)
        self._manifest = lru_cache(maxsize=256)(self._read_manifest)

    def inspecting(self, paths: Sequence[Path], recipe: Recipe, bad_rows: Path | None = None) -> Progress[DatasetView]:
        """What `adding` would make of the files, with every problem, adding nothing; DatasetError when unreadable.

        Rows with a problem are written to `bad_rows`, one JSON object each, as they stand in the files.
        """
        _refuse_size(paths)
        scan = Scan(paths, recipe)
        with ExitStack() as stack:
            out = stack.enter_context(bad_rows.open("wb")) if bad_rows else None
            for verdict in scan:
                if verdict.problems and out and out.tell() < BAD_ROWS_BYTES:
                    _write_bad_row(out, verdict)
                if scan.rows % REPORT_ROWS == 0:
                    yield scan.rows
        return _scanned_view(scan, paths)

    def inspect(self, paths: Sequence[Path], recipe: Recipe, bad_rows: Path | None = None) -> DatasetView:
        """`inspecting`, without reports."""
        return finished(self.inspecting(paths, recipe, bad_rows))

    def adding(self, paths: Sequence[Path], name: str, recipe: Recipe) -> Progress[DatasetView]:
        """Store files as a dataset; the same content, name and recipe are filed only once.

        Raises DatasetError for the first bad row for which the recipe says nothing.
        """
        _refuse_size(paths)
        name = name.strip() or paths[0].stem
        sha256 = files_sha256(paths)
        known = self._known(sha256, name, recipe)
        if known is not None:
            return self.view(known)
        row_id = new_id()
        scratch = self.workspace.tmp / f"dataset-{row_id}"
        try:
            scratch.mkdir(mode=0o700)
            row = yield from self._build(scratch, row_id, paths, name, recipe)
            if row.sha256 != sha256:
                raise DatasetError(f"{row.file_name} was changed while it was read.", "Add it again.")
            scratch.rename(self.workspace.dataset_folder(row_id))
        except OSError as error:
            raise DiskFullError(
                f"{paths[0].name} could not be stored: {error.strerror}.", "Free some disk space."
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self.library.add(row)
        return self.view(row)

    def add(self, paths: Sequence[Path], name: str, recipe: Recipe) -> DatasetView:
        """`adding`, without reports."""
        return finished(self.adding(paths, name, recipe))

    def columns(self, paths: Sequence[Path], encoding: str = UTF8) -> dict[str, str]:
        """Where values are in the first rows of the files, as paths, each with the beginning of one of its values."""
        rows = [row for path in paths for row in islice(read_rows(path, encoding), COLUMN_ROWS) if row.problem is None]
        return {path: _sample(value) for path, value in paths_in(plain_names(row.values) for row in rows).items()}

    def view(self, row: DatasetRow) -> DatasetView:
        """A dataset of the library with the figures of its problems."""
        manifest = self._manifest(row.id)
        if manifest is None:
            return dataset_view(row)
        return dataset_view(row, manifest.counts, tuple(manifest.files.values()), manifest.records_sha256)

    def records(self, dataset_id: str) -> Sequence[Record]:
        """Every usable row of a dataset; on disk, not in memory."""
        return self._records(dataset_id)

    def records_path(self, dataset_id: str) -> Path | None:
        """The file of a dataset's usable rows; None where an earlier version of the studio stored none."""
        path = self.workspace.dataset_folder(self.library.dataset(dataset_id).id) / RECORDS
        return path if path.is_file() else None

    def preview(self, dataset_id: str, start: int, count: int) -> list[PreviewRow]:
        """Some rows as conversations."""
        return [preview_row(record) for record in self.records(dataset_id)[max(0, start) : max(0, start) + count]]

    def _build(
        self, scratch: Path, row_id: str, paths: Sequence[Path], name: str, recipe: Recipe
    ) -> Progress[DatasetRow]:
        """Copy the files and write their records, in a folder that is not in the library yet."""
        stored = stored_names(paths)
        for path, file in zip(paths, stored, strict=True):
            copy(path, scratch / file)
        scan = Scan(paths, recipe)
        with RecordWriter(scratch / RECORDS) as writer:
            for verdict in scan:
                if verdict.record is not None:
                    writer.add(verdict.record)
                if scan.rows % REPORT_ROWS == 0:
                    yield scan.rows
        refuse_errors(scan)
        write_manifest(scratch, Manifest(stored, recipe.as_dict(), dict(scan.counts), writer.sha256))
        return DatasetRow(
            id=row_id,
            name=name,
            file_name=", ".join(stored.values()),
            stored_name=next(iter(stored)),
            format=scan.format,
            rule=scan.rule,
            share=scan.share,
            rows=scan.kept,
            bad_rows=scan.rows - scan.kept,
            skip_bad_rows=bool(recipe.actions),
            sha256=files_sha256([scratch / file for file in stored]),
            size_bytes=sum((scratch / file).stat().st_size for file in stored),
            problems=[asdict(problem) for problem in scan.problems[:SHOWN_PROBLEMS]],
        )

    def _known(self, sha256: str, name: str, recipe: Recipe) -> DatasetRow | None:
        for row in self.library.datasets():
            manifest = self._manifest(row.id)
            if (row.sha256, row.name) == (sha256, name) and manifest and _recipe(manifest) == recipe.as_dict():
                return row
        return None

    def _read(self, dataset_id: str) -> Sequence[Record]:
        row = self.library.dataset(dataset_id)
        return open_dataset(self.workspace.dataset_folder(row.id), row).records

    def _read_manifest(self, dataset_id: str) -> Manifest | None:
        return read_manifest(self.workspace.dataset_folder(dataset_id))


def _recipe(manifest: Manifest) -> dict[str, object]:
    """That a dataset was read with; an earlier version of the studio knew one encoding."""
    return {"encoding": UTF8, **manifest.recipe}


def finished(steps: Progress[T]) -> T:
    """What comes of the work, its reports passed over."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def preview_row(record: Record) -> PreviewRow:
    """A record as the page and the command line show it: who speaks, and what."""
    turns = tuple((turn.role, said(turn)) for turn in record.messages) or (("text", record.text),)
    if record.rejected:
        turns = (*turns[:-1], ("chosen", turns[-1][1]), ("rejected", said(record.rejected[-1])))
    return PreviewRow(record.row, turns, record.file)


def said(turn: Message) -> str:
    """A turn's words, with its tool calls written out."""
    calls = (f"{call.name}({call.arguments})" for call in turn.tool_calls)
    return "\n".join(filter(None, (turn.content, *calls)))


def _scanned_view(scan: Scan, paths: Sequence[Path]) -> DatasetView:
    return DatasetView(
        id="",
        name=paths[0].stem,
        file_name=", ".join(path.name for path in paths),
        format=scan.format,
        rule=scan.rule,
        share=scan.share,
        rows=scan.kept,
        bad_rows=scan.rows - scan.kept,
        sha256=files_sha256(paths),
        size_bytes=sum(path.stat().st_size for path in paths),
        created_at=0.0,
        problems=tuple(problem_view(asdict(problem)) for problem in scan.problems[:SHOWN_PROBLEMS]),
        counts=dict(scan.counts),
        files=tuple(path.name for path in paths),
    )


def _write_bad_row(out: IO[bytes], verdict: Verdict) -> None:
    facts: dict[str, Any] = {"row": verdict.row.number, "file": verdict.file, "used": verdict.record is not None}
    facts["problems"] = [{"kind": problem.kind, "detail": problem.detail} for problem in verdict.problems]
    facts |= {"source": verdict.row.source} if verdict.row.problem else {"values": dict(verdict.row.values)}
    out.write(json.dumps(facts, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass") + b"\n")


def _sample(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text[:80]


def _refuse_size(paths: Sequence[Path]) -> None:
    if not paths:
        raise DatasetError("No file is named.", "Choose at least one.")
    for path in paths:
        if not path.name.isprintable():  # also a name that is not in this system's encoding
            raise DatasetError(f"The file name {path.name!a} is no readable text.", "Rename the file.")
        try:
            size = path.stat().st_size
        except OSError:
            raise DatasetError(f"There is no file {path.name!r}.", "Check the path.") from None
        if size > MAX_BYTES:
            raise DatasetError(f"{path.name} has {size / 2**30:.1f} GiB; the limit is 2 GiB.", "Split the file.")
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        raise DatasetError("Two of the files have the same name.", "Rename one, so that rows can be told apart.")
