"""The safetensors files of a model or an adapter: which there are, and what their headers say. Torch-free.

The files come from strangers. A header is bounded, every entry of it is checked, and its tensors must tile the file, so
that nothing after this reads past an end or believes a size that no bytes stand behind.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ModelError

INDEX_NAME = "model.safetensors.index.json"
MAX_HEADER_BYTES = 10_000_000  # the largest models' files have a tenth of that; 100 MB of JSON would take gigabytes
MAX_JSON_BYTES = 20_000_000
DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a header describes it."""

    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model: those its index names, or else all of them; ModelError for names elsewhere."""
    index = folder / INDEX_NAME
    if not index.exists():
        whole = folder / "model.safetensors"
        return [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))
    listed = read_object(index).get("weight_map")
    names = set(listed.values()) if isinstance(listed, dict) and _all_texts(listed.values()) else set()
    if not names:
        raise ModelError(f"{index.name} of {folder.name!r} is damaged.", "Download the model again.")
    present = {path.name for path in folder.glob("*.safetensors") if path.is_file()}
    for name in names:
        if name not in present:
            raise ModelError(f"{folder.name!r} lacks the weight file {name[:200]!r}.", "Download the model again.")
    return [folder / name for name in sorted(names)]


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a model's folder; ModelError when it is too large, damaged or no object."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it is larger than {MAX_JSON_BYTES // 10**6} MB")
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path.name} of {path.parent.name!r} cannot be read: {str(error)[:200]}.", "Download the model again."
        ) from None
    return values


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, from its header alone; ModelError unless the file is whole."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"its header claims {length:,} bytes")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
        return _checked(header, size - 8 - length)
    except (OSError, ValueError, TypeError, KeyError, struct.error, RecursionError) as error:
        reason = str(error)[:200] or type(error).__name__
        raise ModelError(f"{path.name} is not a whole safetensors file: {reason}.", "Download it again.") from None


def _checked(header: dict[str, Any], size: int) -> dict[str, StoredTensor]:
    """The tensors of a header whose bytes, laid end to end, are exactly the `size` bytes after it."""
    tensors: dict[str, StoredTensor] = {}
    places: list[tuple[int, int]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensors[name], place = _entry(name, entry)
        places.append(place)
    end = 0
    for start, stop in sorted(places):
        if start != end:
            raise ValueError(f"there is a gap or an overlap at byte {end:,}")
        end = stop
    if end != size:
        raise ValueError(f"its tensors take {end:,} bytes of {size:,}")
    return tensors


def _entry(name: str, entry: Any) -> tuple[StoredTensor, tuple[int, int]]:
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ValueError(f"{name[:100]!r} is of the unknown type {str(dtype)[:20]!r}")
    if not isinstance(shape, list) or not _all_sizes([*shape, start, stop]):
        raise ValueError(f"{name[:100]!r} has no proper shape or place")
    if math.prod(shape) * DTYPE_BYTES[dtype] != stop - start:
        raise ValueError(f"{name[:100]!r} has another size than its shape")
    return StoredTensor(dtype, tuple(shape)), (start, stop)


def _all_sizes(values: list[Any]) -> bool:
    return len(values) <= 16 and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _all_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
