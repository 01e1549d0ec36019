"""Fetching the rows of a dataset of the Hugging Face hub into a file: data only, never a loading script."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from core.errors import DatasetError

MAX_BYTES = 2 * 2**30
REPORT_ROWS = 20_000


def fetch_rows(
    hub_id: str, out: Path, *, subset: str = "", split: str = "train", progress: Callable[[int], None] | None = None
) -> int:
    """Stream `owner/name` into a .jsonl file, row by row, and return how many rows there are.

    Raises DatasetError when the id is malformed, the hub cannot be reached, the dataset is gated, needs its own code,
    has no such subset or split, or is larger than `MAX_BYTES`.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    if hub_id.startswith((".", "/")) or hub_id.count("/") > 1 or not hub_id.strip():
        raise DatasetError(f"There is no dataset {hub_id!r} on the hub.", "Give a hub id such as owner/name.")
    try:
        rows = load_dataset(hub_id, subset or None, split=split, streaming=True)
        return _write(rows, out, hub_id, progress)
    except (DatasetsError, HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise _explained(hub_id, error) from error


def _write(rows: object, out: Path, hub_id: str, progress: Callable[[int], None] | None) -> int:
    count = 0
    with out.open("wb") as file:
        for row in rows:  # type: ignore[attr-defined]
            file.write(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n")
            count += 1
            if file.tell() > MAX_BYTES:
                raise DatasetError(
                    f"{hub_id} has more than {MAX_BYTES / 2**30:.0f} GiB of text.", "Take a part: train[:100000]."
                )
            if progress and count % REPORT_ROWS == 0:
                progress(count)
    return count


def _explained(hub_id: str, error: Exception) -> DatasetError:
    """The libraries' many errors as the few that a user can act on."""
    if isinstance(error, DatasetError):
        return error
    said = str(error)
    name = type(error).__name__
    if "gated" in said.lower():
        return DatasetError(f"{hub_id} is gated.", "Accept its terms on the hub and set HF_TOKEN, then try again.")
    if "script" in said.lower() or "trust_remote_code" in said:
        return DatasetError(f"{hub_id} needs to run its own code, which is never done.", "Choose one with data files.")
    if any(word in said for word in ("Config name", "BuilderConfig", "Unknown split", "Bad split")):
        reason = said.splitlines()[0][:300]
        return DatasetError(f"{hub_id} has no such subset or split: {reason}", "Name another subset or split.")
    if name == "DatasetNotFoundError" and "Hub cannot be accessed" not in said:
        return DatasetError(f"The hub has no dataset {hub_id!r}.", "Check the spelling: owner/name.")
    return DatasetError(
        f"The hub could not be reached to fetch {hub_id}.", "Check the connection, or add the dataset as a file."
    )
