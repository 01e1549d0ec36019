"""Rows that are the same as, or nearly the same as, an earlier one, in bounded memory. Torch-free.

Exact copies share a digest. Near copies share most of their 8-byte shingles: one-permutation MinHash with rotation
(Shrivastava and Li, ICML 2014) estimates how many, and banding (Leskovec, Rajaraman and Ullman, Mining of Massive
Datasets, section 3.4) finds the pairs worth estimating. The answers must be alike by themselves, too: many questions
about one long passage are no copies of each other. A million rows take about 250 MB.
"""

from __future__ import annotations

import re
from array import array
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from core.data.records import Record

HASHES = 64  # of a row, and of its answers; the error of an estimate is about sqrt(s (1 - s) / 64): 0.05 at s = 0.8
BANDS, BAND_ROWS = 4, 5  # pairs of 0.9 are found with 97 %, of 0.8 with 80 %, of 0.5 with 12 %
SIMILAR = 0.8  # share of the shingles from which on two rows are nearly the same
SHINGLE = 8  # bytes of UTF-8
MIN_BYTES, MAX_BYTES = 64, 8192  # shorter texts are compared whole, longer ones by their beginning
_BETWEEN = re.compile(r"[\W_]+")
_ASCII_BETWEEN = {code: chr(code) if chr(code).isalnum() else " " for code in range(128)}  # the same, much sooner
_EDGES = np.arange(HASHES, dtype=np.uint64) << np.uint64(58)  # where the 64 bins of the hashes begin
_BANDED = (np.arange(BANDS * BAND_ROWS) * 37) % HASHES  # bins of the bands, apart from each other as neighbours borrow
_MULTIPLIERS = np.random.default_rng(34).integers(1, 2**63, (BANDS, BAND_ROWS), dtype=np.uint64)


class DigestTable:
    """64-bit digests -> the number under which each came first; 12 bytes a place, three quarters full at most."""

    def __init__(self) -> None:
        self._size, self._used = 1 << 12, 0
        self._digests, self._numbers = self._empty()

    def first(self, digest: int, number: int) -> int:
        """The number of the first row with this digest, which is `number` itself for a new one."""
        if 4 * self._used >= 3 * self._size:
            self._grow()
        digest = digest or 1  # 0 marks a free place
        place = self._place(digest)
        if not self._digests[place]:
            self._digests[place], self._numbers[place] = digest, number
            self._used += 1
        return self._numbers[place]

    def _empty(self) -> tuple[array[int], array[int]]:
        return array("Q", bytes(8 * self._size)), array("I", bytes(4 * self._size))

    def _place(self, digest: int) -> int:
        digests, mask = self._digests, self._size - 1
        place = digest & mask
        while digests[place] and digests[place] != digest:
            place = (place + 1) & mask
        return place

    def _grow(self) -> None:
        old = zip(self._digests, self._numbers, strict=True)
        self._size *= 2
        self._digests, self._numbers = self._empty()
        for digest, number in old:
            if digest:
                place = self._place(digest)
                self._digests[place], self._numbers[place] = digest, number


class Duplicates:
    """Remembers every record that passes, in about 250 bytes each."""

    def __init__(self) -> None:
        self._table = DigestTable()
        self._rows = array("Q")  # of every record, its row and the number of its file
        self._files: list[str] = []
        self._signatures = bytearray()

    def find(self, record: Record) -> tuple[str, str]:
        """What an earlier record is to this one ("duplicate", "near_duplicate" or ""), and a sentence on it."""
        number = self._remember(record)
        whole = self._table.first(_digest(record.whole, b"whole"), number)
        words, answers = _words(record)
        same_words = self._table.first(_digest(words, b"words"), number)
        signature, bands = _signature(words)
        self._signatures += signature + _signature(answers)[0]
        if whole != number:
            return "duplicate", f"The row is the same as {self._named(whole, record)}."
        if same_words != number and words:
            named = self._named(same_words, record)
            return "near_duplicate", f"But for case and punctuation, the row is the same as {named}."
        for band in bands:
            other = self._table.first(band, number)
            if other != number and (share := self._similarity(number, other)) >= SIMILAR:
                return "near_duplicate", f"The row is about {share:.0%} the same as {self._named(other, record)}."
        return "", ""

    def _remember(self, record: Record) -> int:
        if not self._files or self._files[-1] != record.file:
            self._files.append(record.file)
        self._rows.append((len(self._files) - 1) << 40 | record.row)
        return len(self._rows) - 1

    def _named(self, number: int, record: Record) -> str:
        file, row = self._files[self._rows[number] >> 40], self._rows[number] & ((1 << 40) - 1)
        return f"row {row:,}" if file == record.file else f"row {row:,} of {file}"

    def _similarity(self, one: int, other: int) -> float:
        """Estimate of the share of equal shingles, in the row or in its answers, whichever is lower."""
        first, second = (
            np.frombuffer(self._signatures, np.uint8, 2 * HASHES, number * 2 * HASHES).reshape(2, HASHES)
            for number in (one, other)
        )
        equal = float((first == second).mean(axis=1).min())
        return max(0.0, (equal - 1 / 256) / (1 - 1 / 256))  # a byte is kept of a hash: chance makes 1 in 256 equal


def _words(record: Record) -> tuple[str, str]:
    """What is said, and what the assistant says, without case and punctuation.

    The system's words are left out: what all rows share must not make them alike.
    """
    if not record.messages:
        return _plain(record.text), ""
    said = [(turn.role, _plain(turn.content)) for turn in (*record.messages, *record.rejected) if turn.role != "system"]
    return " ".join(words for _, words in said), " ".join(words for role, words in said if role == "assistant")


def _plain(text: str) -> str:
    if text.isascii():
        return " ".join(text.lower().translate(_ASCII_BETWEEN).split())
    return _BETWEEN.sub(" ", text.casefold()).strip()


def _digest(text: str, kind: bytes) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=kind).digest(), "little")


def _signature(words: str) -> tuple[bytes, list[int]]:
    """A byte of each minimum, and a digest of each band; of a text too short to be cut up, a digest and no bands."""
    text = words.encode("utf-8", "surrogatepass")[:MAX_BYTES]
    if len(text) < MIN_BYTES:
        return blake2b(text, digest_size=HASHES).digest(), []
    shingles: NDArray[np.uint64] = np.ndarray(len(text) - SHINGLE + 1, "<u8", text, strides=(1,)).astype(np.uint64)
    mixed = (shingles ^ (shingles >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed.sort()
    # The least hash of each bin; an empty bin takes that of the next one that has any.
    minima = mixed[np.searchsorted(mixed, _EDGES) % len(mixed)]
    bands = (minima[_BANDED].reshape(BANDS, BAND_ROWS) * _MULTIPLIERS).sum(axis=1, dtype=np.uint64)
    return ((minima >> np.uint64(24)) & np.uint64(255)).astype(np.uint8).tobytes(), [int(band) for band in bands]
