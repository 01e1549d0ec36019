"""Turning a GGUF file into a transformers folder: dequantised, bfloat16 safetensors, tokenizer and chat template."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from core.errors import ModelError


def convert_gguf(file: Path, out_folder: Path) -> Path:
    """Read `file` through transformers and write a plain model folder; returns `out_folder`.

    The weights are those of the GGUF file, so a 4-bit file gives a 4-bit-exact model in 16-bit clothes.
    Raises ModelError when the file is not GGUF or its architecture is unknown.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _check_magic(file)
    with (
        tempfile.TemporaryDirectory() as alone
    ):  # transformers takes a folder and a name, and looks around in the folder
        (Path(alone) / file.name).symlink_to(file.resolve())
        try:
            tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=file.name)
            model: Any = AutoModelForCausalLM.from_pretrained(alone, gguf_file=file.name, dtype=torch.float32)
        except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"{file.name} cannot be converted: {reason}", "Pick the model's safetensors version."
            ) from error
    _forget_quantisation(model)
    out_folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out_folder)
    tokenizer.save_pretrained(out_folder)
    return out_folder


def _check_magic(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
    except OSError:
        raise ModelError(f"There is no file {file.name!r}.", "Check the path.") from None
    if magic != b"GGUF":
        raise ModelError(f"{file.name} is not a GGUF file.", "Pick a file that ends with .gguf.")


def _forget_quantisation(model: Any) -> None:
    """Drop the mark that would make save_pretrained refuse: the weights in memory are dense."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
