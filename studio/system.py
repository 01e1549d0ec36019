"""The state of this machine as the page shows it: devices, disk and versions."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from studio.views import DeviceView, JobView, SystemView
from studio.workspace import Workspace

SHOWN_PACKAGES = ("lora-studio", "torch", "transformers", "gradio", "sqlalchemy", "safetensors", "datasets")
SIZES_STAY_FRESH_S = 30.0


def devices() -> tuple[DeviceView, ...]:
    """Every GPU, then the CPU with the host's memory; the first is the one a job gets."""
    from studio.gpus import list_devices

    return tuple(list_devices())


def overview(workspace: Workspace, running: Sequence[JobView], queued: int) -> SystemView:
    """Everything the System tab and the strip on top of the page show."""
    from studio.scheduler import scheduler_is_running

    return SystemView(
        devices=devices(),
        disk_free_bytes=shutil.disk_usage(workspace.root).free,
        disk_used=_disk_used(workspace, int(time.monotonic() / SIZES_STAY_FRESH_S)),
        versions=_versions(),
        workspace=str(workspace.root),
        scheduler_running=scheduler_is_running(workspace),
        offline=os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"),
        running=tuple(running),
        queued=queued,
    )


@cache
def _versions() -> Mapping[str, str]:
    found = {}
    for name in SHOWN_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


_last_sizes: dict[Path, tuple[int, dict[str, int]]] = {}


def _disk_used(workspace: Workspace, period: int) -> Mapping[str, int]:
    """Bytes by folder, measured at most once a period: a walk over many checkpoints is too slow for a timer."""
    known = _last_sizes.get(workspace.root)
    if known is None or known[0] != period:
        known = (period, {folder.name: folder_size(folder) for folder in workspace.folders})
        _last_sizes[workspace.root] = known
    return known[1]


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder; files that vanish meanwhile count as nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total
