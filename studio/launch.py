"""Starting processes of the studio so that nothing leaks into them and none of them outlives its purpose.

Every one runs `python -P -m studio.<name>`: without `-P` a folder called `core` in the current directory would be
imported instead of ours. It has its own session (a Ctrl-C in the terminal is not for it), an environment picked by
allow-list, and its output goes to a file, never to a pipe that might fill up and block it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil

from core.memory import ALLOCATOR
from studio.failures import KILLED, Failure, explain_exit
from studio.gpus import visible_devices
from studio.locks import is_held
from studio.processes import Identity, lower_priority, memory_kills
from studio.tables import JobRow
from studio.workspace import Workspace

INHERITED = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT",
    "VIRTUAL_ENV", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "OMP_WAIT_POLICY", "GOMP_SPINCOUNT",
    "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME",
})  # fmt: skip
INHERITED_PREFIXES = ("LC_", "NVIDIA_", "NCCL_", "PYTORCH_", "TORCH", "TRITON_")
NETWORK = frozenset({
    "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
})  # fmt: skip
NETWORK_PREFIXES = ("PIP_", "UV_")
# How many rounds a thread of GNU OpenMP spins, waiting for the others, before it sleeps. Its own default is long, and
# spent on the core that they, or the browser beside them, need: beside one busy process on two cores a step of 0.4 s
# took 3.2 s, and so takes 0.9 s. Alone it takes 0.4 s either way; never to spin would cost it a sixth.
# And how torch parts the memory of a GPU among tensors.
USUALLY = {"GOMP_SPINCOUNT": "3000", "PYTORCH_CUDA_ALLOC_CONF": ALLOCATOR}
ALWAYS = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it cuBLAS may add in another order at each run
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order in which the driver lists the GPUs to us
}


def environment(*, network: bool) -> dict[str, str]:
    """The allow-listed environment; tokens, proxies and package indexes only for what may use the network."""
    names = INHERITED | NETWORK if network else INHERITED
    prefixes = (*INHERITED_PREFIXES, *(NETWORK_PREFIXES if network else ()))
    kept = {name: value for name, value in os.environ.items() if name in names or name.startswith(prefixes)}
    return USUALLY | kept | ALWAYS | ({} if network else {"HF_HUB_OFFLINE": "1"})


def worker_environment(scratch: Path, slot: str, *, network: bool) -> dict[str, str]:
    """The environment of a worker that uses the device of `slot` and no other; its temporary files go to `scratch`."""
    made = environment(network=network) | {"TMPDIR": str(scratch)}
    visible = visible_devices(slot)
    return made if visible is None else made | {"CUDA_VISIBLE_DEVICES": visible}


def start_detached(module: str, arguments: Sequence[str], log: Path, cwd: Path) -> subprocess.Popen[bytes]:
    """Start a process that lives on when this one ends; what it writes is appended to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(network=True),
            cwd=cwd,
            start_new_session=True,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # leaves no zombie if it ends before us
    return process


class Child:
    """A worker this process started. It leaves when its life-line, a pipe that only we hold open, is closed."""

    def __init__(self, workspace: Workspace, job: JobRow, slot: str, *, network: bool) -> None:
        self.job_id, self.attempt, self.slot, self.memory_bytes = job.id, job.attempt, slot, job.memory_bytes
        self._kills_before = memory_kills()
        for folder in (workspace.run_folder(job.id), workspace.scratch(job.id)):
            folder.mkdir(mode=0o700, exist_ok=True)
        reader, self._lifeline = os.pipe()
        try:
            with workspace.worker_log(job.id).open("ab") as output:
                self._process = subprocess.Popen(
                    worker_command(workspace, job, reader),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=worker_environment(workspace.scratch(job.id), slot, network=network),
                    cwd=workspace.root,
                    pass_fds=[reader],
                    start_new_session=True,
                )
        except OSError:
            self.let_go()
            raise
        finally:
            os.close(reader)
        # Only where it computes on the cores that the page needs too. A GPU is fed by one thread, which must not wait.
        if visible_devices(slot) == "":
            lower_priority(self._process.pid)

    def has_ended(self) -> bool:
        """True once the process is gone; also frees the life-line."""
        if self._process.poll() is None:
            return False
        self.let_go()
        return True

    def death(self) -> Failure:
        """How it ended, when it ended without a word."""
        free = psutil.virtual_memory().available
        return explain_exit(self._process.returncode, memory_kills() > self._kills_before, free)

    def send(self, number: signal.Signals) -> None:
        """Signal the worker; SIGKILL goes to everything in its session's group."""
        if self._process.poll() is not None:
            return
        if number == signal.SIGKILL:
            os.killpg(self._process.pid, number)  # still ours: an unreaped child keeps its number
        else:
            self._process.send_signal(number)

    def let_go(self) -> None:
        """Close the life-line: the worker saves and leaves."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


class Orphan:
    """A worker of a scheduler that died. Its life-line is closed, so it is leaving; its lock tells when it is gone."""

    def __init__(self, workspace: Workspace, job: JobRow) -> None:
        self.job_id, self.attempt, self.slot, self.memory_bytes = job.id, job.attempt, job.device, job.memory_bytes
        self._lock = workspace.worker_lock(job.id)
        known = job.pid is not None and job.pid_created is not None
        self._identity = Identity(job.pid or 0, job.pid_created or 0.0) if known else None

    def has_ended(self) -> bool:
        """True once nobody holds the worker's lock."""
        return not is_held(self._lock)

    def death(self) -> Failure:
        """How it ended, as far as that is known: it was nobody's child."""
        return Failure(KILLED, "The scheduler and its worker were stopped.", "Resume the job.", "its lock is free")

    def send(self, number: signal.Signals) -> None:
        """Signal the worker, if it is still the process that took the job."""
        if self._identity is not None:
            self._identity.signal(number)

    def let_go(self) -> None:
        """Nothing to close: the life-line went with the scheduler that held it."""


def worker_command(workspace: Workspace, job: JobRow, lifeline: int) -> list[str]:
    """The command line of a worker: ids and numbers only; everything else is in the database."""
    options = {"workspace": workspace.root, "job": job.id, "attempt": job.attempt, "lifeline": lifeline}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-P", "-m", "studio.worker", *arguments]
