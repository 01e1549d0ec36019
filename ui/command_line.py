"""The command that starts the same job from a terminal: only what differs from the defaults is spelled out."""

from __future__ import annotations

import shlex
from typing import Any

from core.config import TrainConfig
from ui.forms import fields, values_from

_FLAGS = {"r": "--rank", "lora_alpha": "--alpha"}  # what people call them; the others are their own names


def train_command(model: str, dataset: str, name: str, config: TrainConfig) -> str:
    """`lora-studio train ...`, quoted for a POSIX shell."""
    words = ["lora-studio", "train", "--model", model, "--dataset", dataset]
    if name:
        words += ["--name", name]
    if not isinstance(config.adapter.target_modules, str):
        words += ["--target-modules", ",".join(config.adapter.target_modules)]
    settings = values_from(config)
    for spec in fields():
        if not spec.method and settings[spec.name] != spec.default:
            words += _option(_FLAGS.get(spec.name, f"--{spec.name.replace('_', '-')}"), settings[spec.name])
    if own := config.adapter.method_options:
        words += ["--method-options", ",".join(f"{key}={_text(value)}" for key, value in own.items())]
    return shlex.join(words)


def _option(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, _text(value)]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
