"""A GGUF file's header, checked before anything else reads it: every count, length and place lies inside the file.

Layout: the GGUF specification, version 2 and 3 (little endian). Torch-free.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ModelError

MAGIC = b"GGUF"
MAX_ENTRIES = 1_000_000  # keys, or tensors; and strings of one list, of which the largest vocabularies have a quarter
MAX_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GgufHeader:
    """What a file says about itself, without its lists, and the shape of each of its tensors."""

    values: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        """The name of the architecture, "" without one."""
        return str(self.values.get("general.architecture", ""))


def read_gguf_header(file: Path) -> GgufHeader:
    """Read and check a header; ModelError when the file is not GGUF, damaged, or claims what it does not hold."""
    try:
        with file.open("rb") as stream:
            if stream.read(4) != MAGIC:
                raise ModelError(f"{file.name} is not a GGUF file.", "Pick a file that ends with .gguf.")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data).header()
    except FileNotFoundError:
        raise ModelError(f"There is no file {file.name!r}.", "Check the path.") from None
    except (OSError, ValueError, KeyError, struct.error) as error:
        reason = str(error)[:200] or type(error).__name__
        raise ModelError(f"{file.name} is not a whole GGUF file: {reason}.", "Download it again.") from None


class _Reader:
    """Walks a header; every read past the end of the file is a struct.error or a ValueError."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.size = len(data)
        self.at = 4

    def header(self) -> GgufHeader:
        if self.number("I") not in (2, 3):
            raise ValueError("its version is none of 2 and 3")
        tensor_count, key_count = self.count(), self.count()
        values: dict[str, Any] = {}
        for _ in range(key_count):
            name = self.text()
            if name in values:
                raise ValueError(f"the key {name[:100]!r} comes twice")
            values[name] = self.value(self.number("I"))
        infos = [self.tensor() for _ in range(tensor_count)]
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise ValueError("its alignment is no power of two")
        start = -(-self.at // alignment) * alignment
        for name, _, place, size in infos:
            if start + place + size > self.size:
                raise ValueError(f"the tensor {name[:100]!r} ends beyond the file")
        tensors = {name: shape for name, shape, _, _ in infos}
        if len(tensors) != len(infos):
            raise ValueError("two tensors have the same name")
        _refuse_absurd(values, tensors)
        return GgufHeader(values, tensors)

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def count(self) -> int:
        """A number of things that follow, each of which takes at least a byte."""
        value = int(self.number("Q"))
        if value > min(MAX_ENTRIES, self.size - self.at):
            raise ValueError(f"it claims {value:,} entries")
        return value

    def text(self) -> str:
        length = int(self.number("Q"))
        if length > self.size - self.at:
            raise ValueError(f"a text of {length:,} bytes ends beyond the file")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise ValueError(f"a value has the unknown type {kind}")
        self.skip_list()
        return None

    def skip_list(self) -> None:
        """Walk over a list; lists of lists are used by no model."""
        kind, length = self.number("I"), self.count()
        if kind == _STRING:
            for _ in range(length):
                self.text()
        elif kind in _SCALARS:
            self.at += length * struct.calcsize(_SCALARS[kind])
            if self.at > self.size:
                raise ValueError("a list ends beyond the file")
        else:
            raise ValueError(f"a list has the unknown type {kind}")

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, place after the header and bytes of a tensor."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self.text()
        dimensions = self.number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"the tensor {name[:100]!r} has {dimensions} dimensions")
        shape = tuple(int(self.number("Q")) for _ in range(dimensions))
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(self.number("I"))]
        place, elements = int(self.number("Q")), math.prod(shape)
        if not elements or shape[0] % block:
            raise ValueError(f"the tensor {name[:100]!r} has the shape {shape}")
        return name, shape, place, elements // block * block_bytes


def _refuse_absurd(values: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> None:
    """Numbers of modules that no tensors stand for would keep a converter busy for ever."""
    most = max([len(tensors), *(size for shape in tensors.values() for size in shape)])
    counts = {name: value for name, value in values.items() if name.endswith(("_count", "_count_kv"))}
    for name, value in counts.items():
        if not isinstance(value, (int, type(None))) or (value or 0) > most:
            raise ValueError(f"it claims {name} = {value} with {len(tensors):,} tensors")
