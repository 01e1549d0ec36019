import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import psutil
import pytest

from studio import gpus

GIB = 1024**3


class FakeNVML(ModuleType):
    """Stands for the driver's library with two GPUs, the second of which does not measure its load."""

    class NVMLError(Exception):
        pass

    def __init__(self, broken: bool = False) -> None:
        super().__init__("pynvml")
        self.broken = broken
        self.open = 0

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError("driver not loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index > 1:
            raise self.NVMLError("invalid index")
        return index

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        if name != "GPU-b":
            raise self.NVMLError("not found")
        return 1

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=(handle + 1) * 80 * GIB, used=handle * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        if handle == 1:
            raise self.NVMLError("not supported")
        return SimpleNamespace(gpu=37)

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return f"GPU {handle}" if handle else b"GPU 0"


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNVML]:
    fake = FakeNVML()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield fake
    assert fake.open == 0, "every nvmlInit needs its nvmlShutdown"


def test_gpus_come_first_and_the_cpu_last(nvml: FakeNVML) -> None:
    first, second, last = gpus.list_devices()
    assert (first.name, first.kind, first.memory_total_bytes, first.memory_used_bytes) == ("GPU 0", "cuda", 80 * GIB, 0)
    assert first.busy_share == pytest.approx(0.37)
    assert (second.name, second.memory_used_bytes, second.busy_share) == ("GPU 1", GIB, None)
    assert last.kind == "cpu"
    assert gpus.slots() == ("cuda:0", "cuda:1")


@pytest.mark.parametrize(
    ("visible", "slots"),
    [("1", ("cuda:1",)), ("1,0", ("cuda:1", "cuda:0")), ("", ("cpu",)), ("-1", ("cpu",)), ("0,7,1", ("cuda:0",)),
     ("GPU-b", ("cuda:GPU-b",))],
)  # fmt: skip
def test_cuda_visible_devices_is_honoured_as_cuda_does(
    visible: str, slots: tuple[str, ...], nvml: FakeNVML, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(gpus.platform, "system", lambda: "Linux")
    assert gpus.slots() == slots


@pytest.mark.parametrize("module", [None, FakeNVML(broken=True)])
def test_without_a_driver_there_is_the_cpu(module: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    (device,) = gpus.list_devices()
    memory = psutil.virtual_memory()
    assert device.kind == "cpu"
    assert device.memory_total_bytes == memory.total
    assert abs(device.memory_used_bytes - (memory.total - memory.available)) < GIB
    assert "cores" in device.name


def test_a_mac_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(gpus.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(gpus.platform, "machine", lambda: "arm64")
    assert gpus.slots() == ("mps",)
    assert gpus.visible_devices("mps") is None


def test_asking_needs_no_torch() -> None:
    code = "import sys; from studio.gpus import list_devices; list_devices(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
