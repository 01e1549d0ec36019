"""One version of a dataset on disk: the user's files as they came, the rows as they are trained on, and how.

    datasets/<id>/data.csv        the user's file; data-1.csv, data-2.csv, ... of several
    datasets/<id>/records.jsonl   the usable rows, with records.index: where each begins
    datasets/<id>/dataset.json    the recipe, the figures of the problems, and every digest

Nothing of it ever changes, so a run can be repeated whatever later versions of the readers do.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from core.data.dataset import load_dataset
from core.data.record_file import RecordFile
from core.data.records import Record
from core.durable import sync_file
from core.errors import DatasetError
from studio.files import write_atomically
from studio.tables import DatasetRow

RECORDS = "records.jsonl"
MANIFEST = "dataset.json"


@dataclass(frozen=True)
class Manifest:
    """What `dataset.json` says."""

    files: Mapping[str, str]  # stored name -> the user's name
    recipe: Mapping[str, object]
    counts: Mapping[str, int]  # kind of problem -> rows
    records_sha256: str


def stored_names(paths: Sequence[Path]) -> dict[str, str]:
    """Under which names the files are kept -> what the user calls them."""
    if len(paths) == 1:
        return {f"data{paths[0].suffix.lower()}": paths[0].name}
    return {f"data-{number}{path.suffix.lower()}": path.name for number, path in enumerate(paths, start=1)}


def copy(source: Path, target: Path) -> None:
    """Copy a file, safe on disk when this returns."""
    shutil.copyfile(source, target)
    sync_file(target)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `dataset.json`."""
    write_atomically(folder / MANIFEST, json.dumps(asdict(manifest), indent=1, ensure_ascii=False))


def read_manifest(folder: Path) -> Manifest | None:
    """What `dataset.json` says; None for a dataset of a version that wrote none."""
    try:
        return Manifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@dataclass(frozen=True)
class StoredDataset:
    """The usable rows of a dataset of the library, which stay on disk."""

    records: Sequence[Record]
    format: str

    def __len__(self) -> int:
        """How many rows can be trained on."""
        return len(self.records)


def open_dataset(folder: Path, row: DatasetRow, verify: bool = False) -> StoredDataset:
    """A dataset of the library; `verify` checks that its rows are, byte for byte, those that were added.

    Raises DatasetError when they are gone or were changed.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        dataset = load_dataset(folder / row.stored_name, row.format, row.skip_bad_rows)
        records: Sequence[Record] = dataset.records
        changed = verify and dataset.sha256 != row.sha256
    else:
        records = stored = RecordFile(folder / RECORDS)
        changed = verify and stored.sha256() != manifest.records_sha256
    if changed:
        raise DatasetError(
            f"The stored file of {row.name} was changed.", "Add the dataset again, then start a new job."
        )
    return StoredDataset(records, row.format)
