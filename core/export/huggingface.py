"""A transformers model folder, written tensor by tensor: weights, index, config, tokenizer and licence files.

Memory stays at one tensor however large the model is, and the folder appears under its name only when it is whole.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.direct_file import DirectFile
from core.errors import AdapterError, DiskFullError

COMPANIONS = (  # copied beside the weights, where the base has them
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "generation_config.json",
    "*processor_config.json",
    "LICENSE*",
    "LICENCE*",
    "COPYING*",
    "NOTICE*",
)
_PRIVATE = ("_name_or_path", "_model_name_or_path", "auto_map")  # paths of the machine it was made on, and foreign code
_CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_CODES |= {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"}
_CODES |= {torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}

DTYPES = {code: dtype for dtype, code in _CODES.items()}


@dataclass(frozen=True)
class TensorEntry:
    """What the header of a safetensors file says of one tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's values."""
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


def write_safetensors(path: Path, entries: Iterable[TensorEntry], tensors: Iterable[Tensor]) -> None:
    """Write a safetensors file from tensors that come one by one, in the order of `entries`."""
    entries = list(entries)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.size_bytes
        header[entry.name] = {
            "dtype": _CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values start on a multiple of 8
    with DirectFile(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry, tensor in zip(entries, tensors, strict=True):
            if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
                raise ValueError(f"{entry.name} is {tensor.dtype} {tuple(tensor.shape)}, not as announced")
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_index(folder: Path, files: Mapping[str, list[TensorEntry]]) -> None:
    """Write model.safetensors.index.json, which says in which file each tensor is; one file alone needs none."""
    if len(files) < 2:
        return
    size = sum(entry.size_bytes for entries in files.values() for entry in entries)
    weight_map = {entry.name: name for name, entries in files.items() for entry in entries}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON with sorted keys, so that equal values give equal bytes."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def scrubbed_config(config: Mapping[str, Any], dtype: str | None, unties: bool) -> dict[str, Any]:
    """A model's config without private values, with its new dtype, and with tied embeddings turned off if asked."""
    clean = {key: _scrub(value, unties) for key, value in config.items() if key not in _PRIVATE}
    if unties:
        clean["tie_word_embeddings"] = False
    if dtype:
        clean.pop("torch_dtype", None)
        clean["dtype"] = dtype
    return clean


def _scrub(value: Any, unties: bool) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {key: _scrub(entry, unties) for key, entry in value.items() if key not in _PRIVATE}
    return {**inner, "tie_word_embeddings": False} if unties and "tie_word_embeddings" in inner else inner


def copy_companions(base: Path, folder: Path) -> None:
    """Copy tokenizer, chat template, generation config and licence files."""
    for pattern in COMPANIONS:
        for path in sorted(base.glob(pattern)):
            if path.is_file() and path.suffix not in (".safetensors", ".bin", ".py"):
                shutil.copyfile(path, folder / path.name)
    templates = base / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, folder / templates.name)


@contextmanager
def new_folder(folder: Path, needed_bytes: int) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, which takes its name when the block ends well and is removed else.

    Raises AdapterError when `folder` is there already, and DiskFullError before or while the disk is full.
    """
    if folder.exists():
        raise AdapterError(f"{folder.name!r} exists already.", "Choose another name, or remove it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < needed_bytes:
        raise _disk_full(f"{needed_bytes / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free.")
    scratch = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    scratch.mkdir()
    try:
        yield scratch
        scratch.rename(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full("The disk became full while writing.") from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _disk_full(what: str) -> DiskFullError:
    return DiskFullError(f"There is not enough room for the merged model: {what}", "Free some space and try again.")


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
