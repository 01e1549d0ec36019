"""Records on disk: a dataset as it is trained on, of which any row is at hand and none is in memory. Torch-free.

Two files: the records as JSON lines, which any tool for chat data reads, and where each line begins (uint64, little
endian).
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

from core.data.records import Message, Record, ToolCall
from core.errors import DatasetError

INDEX_SUFFIX = ".index"
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


class RecordWriter:
    """Writes records one after the other; `sha256` and `count` are those of what has been written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._digest = hashlib.sha256()
        self._at = 0
        self._records = path.open("wb")
        self._index = path.with_suffix(INDEX_SUFFIX).open("wb")

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._records.close()
        self._index.close()

    def add(self, record: Record) -> None:
        """Write one record."""
        line = line_of(record)
        self._index.write(self._at.to_bytes(8, "little"))
        self._records.write(line)
        self._digest.update(line)
        self._at += len(line)
        self.count += 1

    @property
    def sha256(self) -> str:
        """Of the records' file."""
        return self._digest.hexdigest()


class RecordFile(Sequence[Record]):
    """The records that a `RecordWriter` has written; 8 bytes of memory each."""

    def __init__(self, path: Path) -> None:
        """Raise DatasetError when the files are gone or do not belong together."""
        self.path = path
        try:
            index = path.with_suffix(INDEX_SUFFIX).read_bytes()
            self._size = path.stat().st_size
        except OSError as error:
            raise DatasetError("The stored rows of the dataset are gone.", "Add the dataset again.") from error
        self._starts = array("Q")
        self._starts.frombytes(index[: len(index) // 8 * 8])
        if len(index) % 8 or (self._starts and self._starts[-1] >= self._size):
            raise DatasetError("The stored rows of the dataset are damaged.", "Add the dataset again.")

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> list[Record]: ...
    def __getitem__(self, place: int | slice) -> Record | list[Record]:
        if isinstance(place, slice) and (place.step or 1) == 1:
            start, stop, _ = place.indices(len(self))
            return [from_dict(json.loads(line)) for line in self.lines(start, stop).decode().split("\n") if line]
        with self.path.open("rb") as file:
            if isinstance(place, slice):
                return [self._read(file, start) for start in self._starts[place]]
            return self._read(file, self._starts[place])

    def __iter__(self) -> Iterator[Record]:
        with self.path.open("rb") as file:
            for line in file:
                yield from_dict(json.loads(line))

    def lines(self, start: int, stop: int) -> bytes:
        """The records from `start` to before `stop` as they stand in the file."""
        if start >= min(stop, len(self)):
            return b""
        with self.path.open("rb") as file:
            file.seek(self._starts[start])
            return file.read(self._starts[stop] - self._starts[start] if stop < len(self) else -1)

    def sha256(self) -> str:
        """Of the records' file, read anew."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _read(self, file: Any, start: int) -> Record:
        file.seek(start)
        return from_dict(json.loads(file.readline()))


def line_of(record: Record) -> bytes:
    """A record as it stands in the file."""
    return _ENCODE(as_dict(record)).encode() + b"\n"


def lines_of(records: Sequence[Record], start: int, stop: int) -> bytes:
    """The records from `start` to before `stop` as they stand, or would stand, in a `RecordFile`."""
    if isinstance(records, RecordFile):
        return records.lines(start, stop)
    return b"".join(map(line_of, records[start:stop]))


def as_dict(record: Record) -> dict[str, Any]:
    """A record as JSON, without what it does not have."""
    plain: dict[str, Any] = {"row": record.row, "file": record.file, "text": record.text, "tools": record.tools}
    plain["messages"] = [_turn(turn) for turn in record.messages]
    plain["rejected"] = [_turn(turn) for turn in record.rejected]
    return {name: value for name, value in plain.items() if value}


def from_dict(plain: Mapping[str, Any]) -> Record:
    """The record that `as_dict` was given."""
    messages, rejected = (tuple(map(_message, plain.get(name, ()))) for name in ("messages", "rejected"))
    texts = {name: plain.get(name, "") for name in ("file", "text", "tools")}
    return Record(row=plain["row"], messages=messages, rejected=rejected, **texts)


def _turn(turn: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.tool_calls
        ]
    plain |= {"name": turn.name} if turn.name else {}
    return plain | ({"tool_call_id": turn.call_id} if turn.call_id else {})


def _message(plain: Mapping[str, Any]) -> Message:
    if len(plain) == 2:
        return Message(plain["role"], plain["content"])
    calls = tuple(
        ToolCall(call["function"]["name"], call["function"]["arguments"], call["id"])
        for call in plain.get("tool_calls", ())
    )
    return Message(plain["role"], plain["content"], calls, plain.get("name", ""), plain.get("tool_call_id", ""))
