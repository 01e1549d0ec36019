"""The folder that holds everything the studio keeps: who may read it, and where each thing lies in it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from core.errors import StudioError

HOME_VARIABLE = "LORA_STUDIO_HOME"
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u to misread
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "webdav", "fuse.sshfs", "davfs"})
_stamping = threading.Lock()
_last_stamp = 0
_ID = re.compile(rf"[{ALPHABET}]{{14}}")


class WorkspaceError(StudioError):
    """The workspace cannot be opened, or a path does not belong to it."""


def default_root() -> Path:
    """The workspace when none is named: LORA_STUDIO_HOME, else the platform's folder for user data."""
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(named).expanduser()
    from platformdirs import user_data_path

    return user_data_path("lora-studio", appauthor=False)


def new_id() -> str:
    """A new id of 14 characters: 9 of the time in milliseconds, so that ids sort by age, and 5 at random.

    Those of one process sort as they were made, two within a millisecond and across a clock set back too. Safe as a
    folder name on every system; display names never become paths.
    """
    global _last_stamp
    with _stamping:
        _last_stamp = stamp = max(int(time.time() * 1000), _last_stamp + 1)
    digits = [ALPHABET[stamp >> shift & 31] for shift in range(40, -5, -5)]
    return "".join(digits) + "".join(secrets.choice(ALPHABET) for _ in range(5))


def checked_id(value: str) -> str:
    """Return `value` when it has the form of an id; WorkspaceError otherwise, so that no path is built from it."""
    if not _ID.fullmatch(value):
        raise WorkspaceError(f"{value[:40]!r} is not an id of this studio.", "Take the id from the list.")
    return value


@dataclass(frozen=True)
class Workspace:
    """The places inside one workspace. `Workspace.open` makes the folders; the class alone touches no disk."""

    root: Path

    @classmethod
    def open(cls, root: Path | None = None) -> Workspace:
        """Make the folders where they are missing, readable by this user alone; WorkspaceError where that fails."""
        workspace = cls((root or default_root()).expanduser().absolute())
        try:
            workspace.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            workspace.root.chmod(0o700)
            for folder in workspace.folders:
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise WorkspaceError(
                f"The workspace {workspace.root} cannot be used: {error.strerror}.",
                f"Pick a folder you can write to with --workspace or {HOME_VARIABLE}.",
            ) from error
        _refuse_network(workspace.root)
        return workspace

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every folder of the workspace."""
        return (self.datasets, self.models, self.adapters, self.runs, self.tokens, self.tmp)

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.root / "studio.db"

    @property
    def backups(self) -> Path:
        """Copies of the database, one before each migration."""
        return self.root / "studio.db backups"

    @property
    def datasets(self) -> Path:
        """One folder a dataset."""
        return self.root / "datasets"

    @property
    def models(self) -> Path:
        """One folder a model that the studio fetched, converted or merged."""
        return self.root / "models"

    @property
    def adapters(self) -> Path:
        """One folder an adapter, in PEFT's layout."""
        return self.root / "adapters"

    @property
    def runs(self) -> Path:
        """One folder a job: its log, its lock and its checkpoints."""
        return self.root / "runs"

    @property
    def tokens(self) -> Path:
        """Datasets as the tokens of a model, kept for the next time; may be deleted at any time."""
        return self.root / "tokens"

    @property
    def tmp(self) -> Path:
        """Uploads on their way in, and what is being deleted."""
        return self.root / "tmp"

    @property
    def uploads(self) -> Path:
        """What the page was given, until it is filed; the only folder that a path from the page may lie in."""
        return self.tmp / "uploads"

    @property
    def scheduler_lock(self) -> Path:
        """Locked by the scheduler as long as it lives."""
        return self.root / "scheduler.lock"

    @property
    def scheduler_log(self) -> Path:
        """What the scheduler says."""
        return self.root / "scheduler.log"

    @property
    def server_file(self) -> Path:
        """The address of the running page."""
        return self.root / "server.json"

    def dataset_folder(self, dataset_id: str) -> Path:
        """The folder of one dataset."""
        return self.datasets / checked_id(dataset_id)

    def model_folder(self, model_id: str) -> Path:
        """The folder of one model that the studio owns."""
        return self.models / checked_id(model_id)

    def adapter_folder(self, adapter_id: str) -> Path:
        """The folder of one adapter."""
        return self.adapters / checked_id(adapter_id)

    def run_folder(self, job_id: str) -> Path:
        """The folder of one job."""
        return self.runs / checked_id(job_id)

    def checkpoints_folder(self, job_id: str) -> Path:
        """The saved steps of one training job."""
        return self.run_folder(job_id) / "checkpoints"

    def worker_log(self, job_id: str) -> Path:
        """Standard output and error of every attempt at one job."""
        return self.run_folder(job_id) / "worker.log"

    def worker_lock(self, job_id: str) -> Path:
        """Locked by the worker of one job as long as it lives."""
        return self.run_folder(job_id) / "worker.lock"

    def scratch(self, job_id: str) -> Path:
        """Where a job builds what it moves to its place when whole: on the same disk, so that moving is renaming."""
        return self.tmp / checked_id(job_id)

    def inside(self, path: Path) -> Path:
        """Return `path` with links resolved; WorkspaceError when it leads out of the workspace."""
        resolved = path.resolve()
        if not resolved.is_relative_to(self.root.resolve()):
            raise WorkspaceError(f"{path.name} does not lie in the workspace.", "Add it to the library first.")
        return resolved

    def uploaded(self, path: Path) -> Path:
        """Return `path` when it is an upload; WorkspaceError for any other file, which a forged request might name."""
        if not path.resolve().is_relative_to(self.uploads.resolve()):
            raise WorkspaceError(f"{path.name} was not uploaded.", "Choose the file on the page.")
        return path

    def problems_folder(self, upload_id: str) -> Path:
        """Where the rows with problems of an upload are written out; `upload_id` is the name of the upload's folder."""
        if not re.fullmatch(r"[A-Za-z0-9]{1,128}", upload_id):
            raise WorkspaceError(f"{upload_id[:40]!r} is not an upload of this studio.", "Choose the file again.")
        return self.uploads / upload_id / "problems"

    def discard(self, folder: Path) -> None:
        """Delete a folder of the workspace: renamed away first, so that it is gone whole or not at all."""
        self.inside(folder.parent)
        doomed = self.tmp / f"deleted-{folder.name}-{secrets.token_hex(4)}"
        try:
            folder.rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)


def _refuse_network(root: Path) -> None:
    kind = _file_system(root.resolve())
    if kind in NETWORK_FILE_SYSTEMS:
        raise WorkspaceError(
            f"The workspace {root} lies on a network drive ({kind}), where SQLite cannot keep jobs safe.",
            f"Pick a folder on a local disk with --workspace or {HOME_VARIABLE}.",
        )


def _file_system(path: Path) -> str:
    """The type of the file system `path` lies on, or "" where the system does not tell."""
    import psutil

    try:
        mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    except OSError:
        return ""
    return next((mounts[str(parent)] for parent in (path, *path.parents) if str(parent) in mounts), "")
