"""The command that starts the same job from a terminal: only what differs from the defaults is spelled out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ui.forms import fields

_FLAGS = {"r": "--rank", "lora_alpha": "--alpha"}  # what people call them; the others are their own names


def train_command(
    model: str, dataset: str, name: str, targets: str | Sequence[str], settings: Mapping[str, Any]
) -> str:
    """`lora-studio train ...`, quoted for a POSIX shell; `settings` are form values by field name."""
    words = ["lora-studio", "train", "--model", model, "--dataset", dataset]
    if name:
        words += ["--name", name]
    if not isinstance(targets, str):
        words += ["--target-modules", ",".join(targets)]
    for spec in fields():
        value = settings[spec.name]
        if value != spec.default:
            words += _option(_FLAGS.get(spec.name, f"--{spec.name.replace('_', '-')}"), value)
    return shlex.join(words)


def _option(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, f"{value:g}" if isinstance(value, float) else str(value)]
