"""Turning a GGUF file into a transformers folder: dequantised, bfloat16 safetensors, tokenizer and chat template."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from core.errors import ModelError
from core.gguf_header import read_gguf_header


def convert_gguf(file: Path, out_folder: Path) -> Path:
    """Read `file` through transformers and write a plain model folder; returns `out_folder`.

    The weights are those of the GGUF file, so a 4-bit file gives a 4-bit-exact model in 16-bit clothes.
    Raises ModelError when the file is not GGUF or its architecture is unknown.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read_gguf_header(file)
    with tempfile.TemporaryDirectory() as alone:  # transformers takes a folder and looks around in it
        (Path(alone) / file.name).symlink_to(file.resolve())
        try:
            tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=file.name)
            model: Any = AutoModelForCausalLM.from_pretrained(alone, gguf_file=file.name, dtype=torch.float32)
        except Exception as error:  # a damaged or hostile folder makes transformers raise anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"{file.name} cannot be converted: {reason}", "Pick the model's safetensors version."
            ) from error
    _forget_quantisation(model)
    out_folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out_folder)
    tokenizer.save_pretrained(out_folder)
    return out_folder


def _forget_quantisation(model: Any) -> None:
    """Drop the mark that would make save_pretrained refuse: the weights in memory are dense."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
