"""Lines of a text file, strictly decoded, numbered as an editor numbers them, of bounded length. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from core.errors import DatasetError

UTF8 = "utf-8"
ENCODINGS = {  # by Python's names, as people know them; in all of them a byte of a line end is nothing else
    UTF8: "UTF-8",
    "gb18030": "GBK, GB18030",
    "big5hkscs": "Big5",
    "cp1252": "Windows-1252",
    "cp1251": "Windows-1251",
}
MAX_LINE_BYTES = 10_000_000
_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_SIGNATURES = {
    b"PK\x03\x04": "a ZIP archive or an office document",
    b"\x1f\x8b": "compressed with gzip",
    b"PAR1": "a parquet file",
    b"%PDF": "a PDF document",
}
_SAVE_AS_UTF8 = (
    "Save the file as UTF-8: in Excel choose 'CSV UTF-8' or keep the .xlsx, in an editor 'Save with encoding UTF-8'."
)
_PICK_ENCODING = (
    "Pick its encoding, or save the file as UTF-8: in Excel choose 'CSV UTF-8' or keep the .xlsx, "
    "in an editor 'Save with encoding UTF-8'."
)


class EncodingError(DatasetError):
    """A text that is not in the encoding that it is read with."""


def read_lines(path: Path, encoding: str = UTF8) -> Iterator[tuple[int, str]]:
    """Stream (line number from 1, text); every kind of line end arrives as one newline.

    Raises EncodingError for a file that is no text of that encoding, of `ENCODINGS`, and DatasetError for a line of
    more than `MAX_LINE_BYTES`.
    """
    number = 0
    try:
        with path.open("rb") as file:
            _refuse_other_files(path, file.peek(4)[:4])
            while raw := file.readline(MAX_LINE_BYTES + 1):
                if not number:
                    raw = raw.removeprefix(_BOM)
                for line in _decoded(path, number + 1, raw, encoding):
                    number += 1
                    yield number, line
    except OSError as error:
        raise DatasetError(
            f"{path.name} cannot be read: {error.strerror}.", "Check the disk and the permissions of the file."
        ) from error


def _refuse_other_files(path: Path, head: bytes) -> None:
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            raise DatasetError(
                f"{path.name} is {kind}, not text, in spite of its name.", "Unpack it, or give it its real suffix."
            )
    encoding = _OTHER_BOMS.get(head[:2])
    if encoding or (len(head) == 4 and 0 in head[:2] and 0 in head[2:] and any(head)):
        raise DatasetError(f"{path.name} is encoded as {encoding or 'UTF-16 or UTF-32'}, not as UTF-8.", _SAVE_AS_UTF8)


def _decoded(path: Path, number: int, raw: bytes, encoding: str) -> list[str]:
    """The text of one read; more than one line where old Mac line ends (a lone carriage return) divide it."""
    if len(raw) > MAX_LINE_BYTES:
        raise DatasetError(
            f"Line {number:,} of {path.name} is longer than {MAX_LINE_BYTES:,} bytes.",
            "Put one row on each line, or divide the long text into several rows.",
        )
    if b"\0" in raw:
        at = number + raw[: raw.index(b"\0")].count(b"\r")
        raise DatasetError(
            f"Line {at:,} of {path.name} holds a NUL byte: the file is damaged, or is not text.",
            "Export it again as UTF-8 text.",
        )
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        before = raw[: error.start].split(b"\r")
        line, at = number + len(before) - 1, len(before[-1]) + 1
        if encoding != UTF8:
            raise EncodingError(
                f"Line {line:,} of {path.name} is not in the encoding {ENCODINGS[encoding]}: "
                f"byte 0x{raw[error.start]:02X}, {at:,} bytes into the line.",
                "Pick another encoding, or save the file as UTF-8.",
            ) from error
        raise EncodingError(
            f"Line {line:,} of {path.name} is not UTF-8: byte 0x{raw[error.start]:02X}, {at:,} bytes into the line. "
            "It may be GBK, Latin-1 or another old encoding.",
            _PICK_ENCODING,
        ) from error
    return _split(text)


def _split(text: str) -> list[str]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    ended = [line + "\n" for line in lines[:-1]]
    return [*ended, lines[-1]] if lines[-1] else ended
