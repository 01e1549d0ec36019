"""What a failure means, in words: the cause and what to do, for every exception a worker can end with."""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass

from core.errors import StudioError
from studio.log import redact

MAX_DETAIL = 20_000  # characters of a traceback that are kept
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "defaultcpuallocator")
_LESS_MEMORY = "Lower the micro-batch size or the longest example, pick a smaller model, or close other programs."


@dataclass(frozen=True)
class Failure:
    """Why a job failed: what happened, what to do, and the traceback for a report."""

    what: str
    fix: str
    detail: str


def explain(error: BaseException) -> Failure:
    """Describe an exception for the user."""
    what, fix = _sentences(error)
    detail = "" if isinstance(error, StudioError) else "".join(traceback.format_exception(error))[-MAX_DETAIL:]
    return Failure(redact(what), redact(fix), redact(detail))


def _sentences(error: BaseException) -> tuple[str, str]:
    if isinstance(error, StudioError):
        return error.what, error.fix
    if is_out_of_memory(error):
        return "The memory of the device was not enough for this run.", _LESS_MEMORY
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The disk is full.", "Free some space, then resume the job: it goes on from its last checkpoint."
    first = next(iter(str(error).splitlines()), "")
    what = f"The worker stopped with an unexpected error: {type(error).__name__}: {first[:300]}"
    return what, "The log below has the details. Resuming the job goes on from its last checkpoint."


def is_out_of_memory(error: BaseException) -> bool:
    """True for Python's and torch's ways to say that memory ran out, on the host or on a GPU; needs no torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _NO_MEMORY)
