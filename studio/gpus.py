"""The devices of this machine and their memory, read without torch so that any process may ask."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from studio.views import DeviceView

CPU = "cpu"


def list_devices() -> tuple[DeviceView, ...]:
    """The CUDA devices that this process may use, and the CPU with the host's memory last."""
    return (*cuda_devices().values(), cpu())


def slots() -> tuple[str, ...]:
    """Where jobs can run side by side: `cuda:0`, `cuda:1`, ... or `mps` or `cpu` when there is no such GPU."""
    found = tuple(cuda_devices())
    if found:
        return found
    return ("mps",) if platform.system() == "Darwin" and platform.machine() == "arm64" else (CPU,)


def memory_of(slot: str) -> DeviceView | None:
    """The device of a slot with its memory; None for a GPU that no longer answers."""
    return cuda_devices().get(slot) if slot.startswith("cuda:") else cpu()


def visible_devices(slot: str) -> str | None:
    """The value of CUDA_VISIBLE_DEVICES for a worker in `slot`; "" hides every GPU, None leaves it unset."""
    if slot == "mps":
        return None
    return slot.removeprefix("cuda:") if slot.startswith("cuda:") else ""


def cpu() -> DeviceView:
    """The processor, its load since the last call, and the memory of the host."""
    memory = psutil.virtual_memory()
    used = memory.total - memory.available
    return DeviceView(_cpu_name(), CPU, memory.total, used, psutil.cpu_percent() / 100)


def cuda_devices() -> dict[str, DeviceView]:
    """The NVIDIA GPUs by slot (`cuda:<index of the driver>`), within CUDA_VISIBLE_DEVICES; {} without a driver."""
    with _nvml() as nvml:
        if nvml is None:
            return {}
        return {f"cuda:{name}": _read(nvml, handle) for name, handle in _handles(nvml)}


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVIDIA's management library, or None where its package or the driver is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        yield None
        return
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _handles(nvml: Any) -> Iterator[tuple[str, Any]]:
    """(index or UUID, handle) of every GPU that CUDA_VISIBLE_DEVICES allows and that answers."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(nvml.nvmlDeviceGetCount())] if visible is None else visible.split(",")
    for name in (name.strip() for name in names):
        try:
            by_index = name.isdigit()
            yield name, nvml.nvmlDeviceGetHandleByIndex(int(name)) if by_index else nvml.nvmlDeviceGetHandleByUUID(name)
        except nvml.NVMLError:  # "-1", an unknown index, or a GPU that fell off the bus: CUDA stops here as well
            return


def _read(nvml: Any, handle: Any) -> DeviceView:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    except nvml.NVMLError:  # not measured on partitioned GPUs
        busy = None
    name = nvml.nvmlDeviceGetName(handle)
    return DeviceView(name if isinstance(name, str) else name.decode(), "cuda", memory.total, memory.used, busy)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{named or platform.processor() or platform.machine()} ({psutil.cpu_count() or 1} cores)"
