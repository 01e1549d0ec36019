"""Model folders built to do harm are refused, soon and in little memory, and no code of theirs runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.errors import ModelError
from core.models import inspect_model
from tests.scenarios.plugin import Say
from tests.security.hostile_models import CANARY, LOADED, READ, sound_model

ROOT = Path(__file__).resolve().parents[2]
MAX_S, MAX_MIB = 5.0, 500
ATTEMPT = """
import json, os, sys
from pathlib import Path
from core.errors import StudioError
reads = sys.argv[1] == "read"
if reads:
    from core.models import inspect_model as use
else:
    import transformers.models.llama.modeling_llama
    from core.models import load_model
    use = lambda folder: load_model(folder, device="cpu")
for folder in map(Path, sys.argv[2:]):
    child = os.fork()
    if child == 0:
        said = "accepted"
        try:
            use(folder)
        except StudioError as error:
            said = f"{error.what} {error.fix}"
        except BaseException as error:
            said = f"uncaught {error!r}"
        os.write(1, (json.dumps({"name": folder.name, "said": said}) + "\\n").encode())
        os._exit(0)
    usage = os.wait4(child, 0)[2]
    cpu_s = usage.ru_utime + usage.ru_stime
    os.write(1, (json.dumps({"cpu_s": cpu_s, "peak_mib": usage.ru_maxrss >> 10}) + "\\n").encode())
"""


def attempt(how: str, folders: list[Path]) -> list[dict[str, Any]]:
    """Use each folder in a child of its own; what was said, the seconds of the processor and the memory."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPT, how, *map(str, folders)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [said | used for said, used in zip(lines[::2], lines[1::2], strict=True)]


@pytest.mark.scenario(34)
@pytest.mark.parametrize(("how", "models"), [("read", READ), ("load", LOADED)])
def test_hostile_models_are_refused(how: str, models: dict[str, Any], tmp_path: Path, figure: Say) -> None:
    folders = []
    for name, (harm, _) in models.items():
        folders.append(sound_model(tmp_path / name))
        harm(folders[-1])
    found = attempt(how, folders)
    for result, (_, word) in zip(found, models.values(), strict=True):
        assert word in result["said"], result
        assert not result["said"].startswith(("accepted", "uncaught")) and "Traceback" not in result["said"], result
    slowest, largest = (max(result[key] for result in found) for key in ("cpu_s", "peak_mib"))
    assert slowest <= MAX_S and largest <= MAX_MIB
    assert not list(tmp_path.rglob(CANARY))
    figure(f"{len(found)} hostile models to {how}: 0 accepted, 0 ran code, within {MAX_S:g} s, at most {largest} MiB")


def test_the_sound_model_is_accepted(tmp_path: Path) -> None:
    """The control: refusals of a folder that nobody could use would prove nothing."""
    info = inspect_model(sound_model(tmp_path / "sound"))
    assert (info.layers, info.parameters) == (1, 64 * 16 + 3 * 16 + 4 * 16 * 16 + 3 * 16 * 32)


def test_a_shard_name_that_leads_away_is_not_even_opened(tmp_path: Path) -> None:
    folder = sound_model(tmp_path / "deep" / "model")
    (folder / "model.safetensors").replace(tmp_path / "secret.safetensors")
    (folder / "model-1.safetensors").write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../../secret.safetensors"}}')
    with pytest.raises(ModelError, match="lacks the weight file"):
        inspect_model(folder)
