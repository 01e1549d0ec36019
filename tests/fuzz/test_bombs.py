"""Files that are small until they are read, or larger than any memory: refused at a cap, in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.scenarios.plugin import Say

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
SLOW = "a parquet file that unpacks to 520 MB"
READ = """
import json, sys, time
from pathlib import Path
from core.data.dataset import inspect_dataset
from core.errors import DatasetError
import pyarrow.parquet
def kib(key):  # not ru_maxrss, which starts with what the parent had
    return int(Path("/proc/self/status").read_text().partition(key + ":")[2].split()[0])
Path("/proc/self/clear_refs").write_text("5")
before, cpu = kib("VmRSS"), time.process_time()
try:
    said = f"{len(inspect_dataset(Path(sys.argv[1])))} rows"
except DatasetError as error:
    said = f"{error.what} {error.fix}"
print(json.dumps({"said": said, "mib": kib("VmHWM") - before >> 10, "cpu_s": time.process_time() - cpu}))
"""


def _parquet(path: Path) -> None:
    """65 KB that unpack to 520 MB in each of five row groups; the footer claims 62 KB."""
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 8000, pyarrow.int32()), ["x" * 65_000])
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'{"text": "fine"}\n')
        file.truncate(20 * 10**9)


def _long_line(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'{"text": "')
        for _ in range(300):
            file.write(b"x" * MIB)
        file.truncate(2 * 10**9)


BOMBS: dict[str, tuple[str, Callable[[Path], None], int, float]] = {
    SLOW: ("bomb.parquet", _parquet, 39, 60.0),
    "20 GB of sparse JSON lines": ("huge.jsonl", _sparse, 40, 1.0),
    "a line of 2 GB": ("line.jsonl", _long_line, 40, 1.0),
}


@pytest.mark.scenario(39, 40)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not tell a peak of memory")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == SLOW)) for name in BOMBS])
def test_bombs_stay_small(name: str, tmp_path: Path, figure: Say) -> None:
    file, make, number, seconds = BOMBS[name]
    make(tmp_path / file)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / file)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["mib"] <= 300 and found["cpu_s"] <= seconds, found
    figure(f"{name}: {found['mib']} MiB above the start", number)
