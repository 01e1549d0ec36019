"""Holding rows out to measure the validation loss. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from core.data.records import Record

MIN_ROWS = 10  # from here on at least one row is held out


def split_places(records: Sequence[Record], share: float, max_rows: int, seed: int) -> tuple[list[int], list[int]]:
    """The places of the records in (train, validation), each in order; about `share` of the rows are held out.

    Rows with equal prompts stay on one side: a validation loss over prompts that were trained on would flatter.
    Only when one prompt fills the whole dataset are equal rows, rather than equal prompts, kept together.
    A row's place depends on its text and the seed alone, so the same file splits the same way on every machine.
    """
    wanted = min(round(len(records) * share), max_rows)
    if len(records) >= MIN_ROWS and share > 0 and max_rows > 0:
        wanted = max(wanted, 1)
    held = _held_out(records, wanted, seed, lambda record: record.prompt)
    if wanted and not held:
        held = _held_out(records, wanted, seed, lambda record: record.whole)
    return [index for index in range(len(records)) if index not in held], sorted(held)


def _held_out(records: Sequence[Record], wanted: int, seed: int, key: Callable[[Record], str]) -> set[int]:
    """Indices of whole groups, in an order drawn by the seed, until `wanted` rows are reached."""
    groups: dict[bytes, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(_draw(seed, key(record)), []).append(index)
    drawn = sorted(groups.items())
    held: set[int] = set()
    for _, rows in drawn:
        if len(held) + len(rows) <= wanted:
            held.update(rows)
    if not held and wanted and len(groups) > 1:  # every group is larger than what is wanted
        held.update(sorted((rows for _, rows in drawn), key=len)[0])
    return held


def _draw(seed: int, text: str) -> bytes:
    """A fair draw that is the same in every process, unlike `hash()`."""
    return hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()
