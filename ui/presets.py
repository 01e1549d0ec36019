"""Presets of the training form: how long a run learns and how much it can learn, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.methods import methods

# Epochs, rank, validations per run (0: as often as the trainer picks).
PRESETS: dict[str, tuple[float, int, int]] = {"quick": (1.0, 8, 5), "balanced": (3.0, 16, 0), "thorough": (6.0, 32, 40)}


def preset_of(settings: Mapping[str, Any]) -> str | None:
    """The preset that the settings are those of, so that the form never names one that it does not follow."""
    for name, (epochs, rank, _) in PRESETS.items():
        if settings["epochs"] == epochs and (settings["r"] == rank or not sets_rank(settings["method"])):
            return name
    return None


def sets_rank(method: str) -> bool:
    """Whether a preset sets the rank; not of methods whose ranks are of another size than LoRA's."""
    about = methods.get(method)
    return "r" in about.uses and "r" not in about.suggested
