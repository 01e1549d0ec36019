"""Tokenised records on disk, found again by what they were made of. Torch-free.

A file holds some consecutive records as an Arrow table of one batch, `row`, `input_ids` and `loss_mask`, and is mapped
into memory rather than read. It is named after the digest of the records and of everything that decides on their
tokens, so nothing is looked up by name or date: other rows, another tokenizer, template or version of the rules has
other files. It is there whole or not at all, and the CRC-32 in its name tells later damage, before Arrow trusts any
length in it. All of it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.data.chat_template import moment_of_writing
from core.data.tokenized import TokenPart

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_BYTES = 4 * 2**30  # of all files; those that were used least recently go first
SUFFIX = ".arrow"
STALE_S = 3600.0

logger = logging.getLogger(__name__)


class TokenCache:
    """The files in one folder, which several processes may share."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        names = os.listdir(folder) if folder.is_dir() else []
        self._names = {name.split(".")[0]: name for name in names if name.endswith(SUFFIX)}

    def read(self, key: str) -> TokenPart | None:
        """What was kept under a key; None when nothing was, or when it is damaged, which removes it."""
        name = self._names.pop(key, "")
        path = self.folder / name
        try:
            part = _mapped(path) if name else None
        except OSError as error:
            logger.warning("tokens that were kept are made anew: %s", error)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        if part is None:
            return None
        self._names[key] = name
        with contextlib.suppress(OSError):
            os.utime(path)
        return part

    def keys(self) -> frozenset[str]:
        """Those under which something is kept now."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return frozenset(name.split(".")[0] for name in names if name.endswith(SUFFIX))

    def look_for(self, key: str) -> TokenPart | None:
        """What was kept under a key, also by another process since."""
        if key not in self._names:
            found = next(self.folder.glob(f"{key}.*{SUFFIX}"), None)
            if found is None:
                return None
            self._names[key] = found.name
        return self.read(key)

    def write(self, key: str, part: TokenPart) -> TokenPart:
        """Keep a part and return it as it lies in the file; where the disk does not take it, as it is."""
        temporary = self.folder / f".{key}{SUFFIX}.{os.getpid()}"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            content = _table(part)
            name = f"{key}.{zlib.crc32(content):08x}{SUFFIX}"
            temporary.write_bytes(content)  # not synced: what a power cut leaves half is told by its sum
            temporary.replace(self.folder / name)
        except OSError as error:
            logger.warning("tokens are not kept for the next time: %s", error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            return part
        self._names[key] = name
        return self.read(key) or part

    def trim(self) -> None:
        """Delete the files that were used least recently until the others fit; those in use stay mapped."""
        for path in self.folder.glob(f".*{SUFFIX}.*"):  # of a process that was killed while it wrote
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - STALE_S:
                    path.unlink()
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):  # another process was faster
                facts = path.stat()
                found.append((facts.st_mtime, facts.st_size, path))
        total = 0
        for _, size, path in sorted(found, reverse=True):
            total += size
            if total > self.max_bytes:
                path.unlink(missing_ok=True)


def recipe_of(tokenizer: PreTrainedTokenizerBase, way: str) -> bytes:
    """A digest of all that decides which tokens a record becomes, and which of them are trained.

    `way` names what is done with a record, and every setting of it.
    """
    known: Any = tokenizer
    known("", padding=False, truncation=False)  # undoes what another caller may have left on, as tokenising does
    template = json.dumps(known.chat_template, sort_keys=True)
    facts = [
        known.backend_tokenizer.to_str(),
        template,
        json.dumps({name: str(token) for name, token in known.special_tokens_map.items()}, sort_keys=True),
        str(getattr(known, "split_special_tokens", False)),
        str([getattr(known, name, None) for name in ("src_lang", "tgt_lang")]),
        way,
        moment_of_writing().date().isoformat() if "strftime_now" in template else "",
        _rules(),
    ]
    return hashlib.sha256("\0".join(facts).encode("utf-8", "surrogatepass")).digest()


def key_of(recipe: bytes, records: bytes) -> str:
    """The key of some records, given as a `RecordWriter` writes them."""
    return hashlib.sha256(recipe + records).hexdigest()


@cache
def _rules() -> str:
    """A digest of the code that makes tokens of records, and the versions of the libraries that it calls."""
    import tokenizers
    import transformers

    digest = hashlib.sha256(f"{tokenizers.__version__} {transformers.__version__}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _table(part: TokenPart) -> Any:
    """A part as the content of an Arrow file."""
    import pyarrow as arrow

    mask = part.loss_mask.view(np.uint8)
    columns = {
        "row": arrow.array(part.rows),
        "input_ids": arrow.LargeListArray.from_arrays(part.starts, part.input_ids),
        "loss_mask": arrow.LargeListArray.from_arrays(part.starts, mask),
    }
    table = arrow.table(columns)
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _mapped(path: Path) -> TokenPart:
    """The arrays of a file, which stay on disk until they are looked at. Raises OSError for a damaged one."""
    import pyarrow as arrow

    with arrow.memory_map(str(path)) as source:
        content = source.read_buffer()
    if f"{zlib.crc32(content):08x}" != path.name.split(".")[1]:
        raise OSError(f"{path.name} is damaged")
    batch = arrow.ipc.open_file(arrow.BufferReader(content)).get_batch(0)
    ids, mask = batch.column("input_ids"), batch.column("loss_mask")
    rows, starts = batch.column("row").to_numpy(), ids.offsets.to_numpy()
    return TokenPart(rows, starts, ids.values.to_numpy(), mask.values.to_numpy().view(bool))
