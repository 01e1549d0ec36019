"""A set of figures about a model, with what they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One held-out row as it was answered."""

    prompt: str
    expected: str
    given: str


@dataclass(frozen=True)
class Scores:
    """Figures by name: shares from 0 to 1, but for perplexity, margins (nats), BLEU and chrF (0 to 100)."""

    values: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] = ()  # of the confusion matrix
    confusion: tuple[tuple[int, ...], ...] = ()  # rows: the true label; columns: the one that was given
    answers: tuple[Answer, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain, JSON-ready data; what is empty is left out."""
        parts = {
            "values": dict(self.values),
            "labels": list(self.labels),
            "confusion": [list(row) for row in self.confusion],
            "answers": [vars(answer) for answer in self.answers],
        }
        return {name: part for name, part in parts.items() if part or name == "values"}
