"""Full fine-tuning: every weight of the model trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.config import AdapterConfig
from core.methods.method import BASELINE, Method, methods

if TYPE_CHECKING:
    from core.models import ModelInfo


@methods.register("full")
class Full(Method):
    """The baseline that all others save memory against."""

    title = "Full fine-tuning"
    hint = "every weight"
    summary = "Trains every weight of the model: the most memory, the largest file, and the mark to measure others by."
    paper = "Howard & Ruder 2018, arXiv 1801.06146"
    group = BASELINE
    uses = frozenset({"modules_to_save"})  # those train whole anyway
    learning_rate_factor = 0.05

    @classmethod
    def trains_matrices(cls, config: AdapterConfig) -> bool:
        """All of them."""
        return True

    @classmethod
    def trainable_parameters(cls, info: ModelInfo, config: AdapterConfig) -> int:
        """All of them."""
        return info.parameters
