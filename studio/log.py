"""Logging without secrets, and reading the end of a log."""

from __future__ import annotations

import logging
import os
import re
from logging.handlers import RotatingFileHandler
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MAX_LOG_BYTES = 1_000_000
HIDDEN = "[hidden]"
_SECRET_NAMES = ("TOKEN", "SECRET", "PASSWORD", "API_KEY", "ACCESS_KEY")
_SECRET_SHAPES = re.compile(
    r"hf_[A-Za-z0-9]{16,}"  # a token of the Hugging Face hub
    r"|(?<=[Bb]earer )[\w.~+/=-]{8,}"
    r"|(?<=[?&]token=)[^&\s\"']+"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user:password in an address
)


def redact(text: str) -> str:
    """Return `text` with tokens, passwords and the values of secret environment variables hidden."""
    for name, value in os.environ.items():
        if len(value) >= 8 and any(part in name.upper() for part in _SECRET_NAMES):
            text = text.replace(value, HIDDEN)
    return _SECRET_SHAPES.sub(HIDDEN, text)


class RedactingFormatter(logging.Formatter):
    """Formats a record, traceback included, and hides its secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line to write."""
        return redact(super().format(record))


def log_to_file(path: Path) -> None:
    """Send the log of this process to a file that never grows past a few megabytes."""
    _install(RotatingFileHandler(path, maxBytes=MAX_LOG_BYTES, backupCount=2, encoding="utf-8"))


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send the log of this process to standard error, which its parent has pointed at a file."""
    _install(logging.StreamHandler(), level)


def _install(handler: logging.Handler, level: int = logging.INFO) -> None:
    handler.setFormatter(RedactingFormatter(FORMAT))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def tail(path: Path, max_bytes: int = 65_536) -> str:
    """The end of a log, whole lines, progress bars reduced to their last state, secrets hidden; "" without a file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            data = file.read(max_bytes)
    except FileNotFoundError:
        return ""
    text = data.decode("utf-8", errors="replace")
    if size > max_bytes:
        text = text.partition("\n")[2]  # the first line is cut
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return redact("\n".join(lines))
