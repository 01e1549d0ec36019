"""What a failure means: its kind, the cause in words, the line that shows it, and what to do about it.

Kinds decide what is offered as a remedy (`studio.remedies`). Nothing here needs torch: exceptions are known by their
type's name and by the words that torch, CUDA and the system use.
"""

from __future__ import annotations

import errno
import re
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from core.errors import (
    DiskFullError,
    DivergedError,
    GatedModelError,
    MissingModelError,
    NothingTrainedError,
    OutOfMemoryError,
    StudioError,
)
from studio.log import redact

MAX_DETAIL = 20_000  # characters of a traceback that are kept
MAX_EVIDENCE = 400

GPU_MEMORY, HOST_MEMORY, DISK_FULL, DIVERGED = "gpu_memory", "host_memory", "disk_full", "diverged"
NOTHING_TRAINED, MODEL_MISSING, MODEL_GATED, NUMBER_FORMAT = "nothing_trained", "model_missing", "model_gated", "dtype"
GPU_LOST, KILLED, CRASHED, REFUSED, UNKNOWN = "gpu_lost", "killed", "crashed", "refused", "unknown"

_BY_TYPE = {
    DiskFullError: DISK_FULL,
    DivergedError: DIVERGED,
    NothingTrainedError: NOTHING_TRAINED,
    GatedModelError: MODEL_GATED,
    MissingModelError: MODEL_MISSING,
}
_NO_MEMORY = re.compile(r"out of memory|can.?t allocate memory|cannot allocate memory|defaultcpuallocator", re.I)
_ON_GPU = re.compile(r"cuda|gpu|hip|mps|cublas|cudnn", re.I)
_GPU_LOST = re.compile(
    r"cuda error|cuda driver|cudnn error|cublas error|no cuda-capable device|no cuda gpus|uncorrectable|xid|"
    r"fallen off the bus|gpu is lost|device-side assert|nccl error",
    re.I,
)
_NUMBER_FORMAT = re.compile(
    r"not implemented for '(half|bfloat16|float8\w*)'|bfloat16 is not supported|does not support bfloat16|"
    r"unsupported (scalar ?type|dtype)|expected .*dtype|expected scalar type",
    re.I,
)
_SIZES = re.compile(r"tried to allocate ([\d.]+ \w+).*?of which ([\d.]+ \w+) is free", re.I | re.S)
_LESS_MEMORY = "Lower the micro-batch size or the longest example, pick a smaller model, or close other programs."
_GO_ON = "Resuming the job goes on from its last checkpoint."


@dataclass(frozen=True)
class Failure:
    """Why a job failed; `evidence` is the line that shows it, `detail` a traceback or the end of the log."""

    kind: str
    what: str
    fix: str
    evidence: str = ""
    detail: str = ""


def explain(error: BaseException) -> Failure:
    """Describe the exception that ended a worker's work."""
    kind = kind_of(error)
    what, fix = _sentences(error, kind)
    root = list(_causes(error))[-1]
    is_told = isinstance(root, StudioError)
    evidence = "" if is_told else f"{type(root).__name__}: {' '.join(str(root).split())}"[:MAX_EVIDENCE]
    detail = "" if is_told else "".join(traceback.format_exception(error))[-MAX_DETAIL:]
    return Failure(kind, redact(what), redact(fix), redact(evidence), redact(detail))


def kind_of(error: BaseException) -> str:
    """The kind of a failure: that of the first cause in the chain that is known."""
    for cause in _causes(error):
        for known, kind in _BY_TYPE.items():
            if isinstance(cause, known):
                return kind
    for cause in _causes(error):
        if (kind := _kind_by_words(cause)) != UNKNOWN:
            return kind
    if isinstance(error, OutOfMemoryError):
        return HOST_MEMORY
    return REFUSED if isinstance(error, StudioError) else UNKNOWN


def _kind_by_words(error: BaseException) -> str:
    words = str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DISK_FULL
    if is_out_of_memory(error) and not isinstance(error, StudioError):  # ours does not tell where: its cause does
        return GPU_MEMORY if type(error).__module__ == "torch" or _ON_GPU.search(words) else HOST_MEMORY
    if isinstance(error, (RuntimeError, TypeError)) and not isinstance(error, StudioError):
        if _GPU_LOST.search(words):
            return GPU_LOST
        if _NUMBER_FORMAT.search(words):
            return NUMBER_FORMAT
    return UNKNOWN


def is_out_of_memory(error: BaseException) -> bool:
    """True for Python's and torch's ways to say that memory ran out, on the host or on a GPU; needs no torch."""
    if isinstance(error, StudioError):
        return isinstance(error, OutOfMemoryError)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _sentences(error: BaseException, kind: str) -> tuple[str, str]:
    sizes = next((found for cause in _causes(error) if (found := _SIZES.search(str(cause)))), None)
    if isinstance(error, StudioError):
        more = f" {sizes[1]} more were needed and {sizes[2]} were free." if sizes else ""
        return error.what + more, error.fix
    if kind == GPU_MEMORY:
        if not sizes:
            return "The memory of the GPU was not enough for this run.", _LESS_MEMORY
        need, free = sizes[1], sizes[2]
        what = f"The memory of the GPU was not enough for this run. {need} more were needed and {free} were free."
        return what, _LESS_MEMORY
    if kind == HOST_MEMORY:
        return "The memory of this machine was not enough for this run.", _LESS_MEMORY
    if kind == DISK_FULL:
        return "The disk is full.", "Free some space, then resume the job: it goes on from its last checkpoint."
    if kind == GPU_LOST:
        return "The GPU failed or was lost.", f"Check the driver (nvidia-smi); a restart may be needed. {_GO_ON}"
    if kind == NUMBER_FORMAT:
        return "This device cannot compute in the chosen number format.", "Set dtype to float32."
    first = next(iter(str(error).splitlines()), "")
    what = f"The worker stopped with an unexpected error: {type(error).__name__}: {first[:300]}"
    return what, f"The log below has the details. {_GO_ON}"


def explain_exit(code: int, out_of_memory: bool = False, free_bytes: int | None = None) -> Failure:
    """Describe a worker that ended without a word: by a signal (negative `code`) or on its own.

    `out_of_memory` tells that the kernel killed a process for want of memory meanwhile.
    """
    free = "" if free_bytes is None else f"; {free_bytes / 2**30:.1f} GiB of memory were free just after"
    if code == -signal.SIGKILL and out_of_memory:
        what = "The system killed the worker because memory ran out (SIGKILL)."
        return Failure(
            HOST_MEMORY, what, _LESS_MEMORY, f"signal 9; the kernel counts one more out-of-memory kill{free}"
        )
    if code == -signal.SIGKILL:
        what = "The worker was killed (SIGKILL), which the system does when memory runs out."
        return Failure(KILLED, what, f"Close other programs, or train with less memory. {_GO_ON}", f"signal 9{free}")
    if code == -signal.SIGPROF:
        what = "The model's chat template did not end, so the worker was stopped (SIGPROF)."
        return Failure(CRASHED, what, "Pick another model, or mend its chat template.", "signal SIGPROF")
    if code < 0:
        name = signal.Signals(-code).name
        return Failure(
            CRASHED, f"The worker crashed ({name}).", f"The log below tells where. {_GO_ON}", f"signal {name}"
        )
    what = f"The worker ended without a result (exit code {code})."
    return Failure(CRASHED, what, f"The log below tells more. {_GO_ON}", f"exit code {code}")
