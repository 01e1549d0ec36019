"""The bounds of the tasks, as goals over the rows that the runs gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.bench.record import Goal, ratio

Found = dict[str, Any]
SMALL = ("qa-t5", "qa-bart", "translation-t5", "translation-bart")


def goals(rows: Sequence[Found]) -> list[Goal]:
    """Every bound, with what was measured of it."""
    found = {(row["case"], row["figure"]): row for row in rows}

    def value(case: str, figure: str, side: str = "after") -> float | None:
        row = found.get((case, figure))
        return None if row is None else row[side]

    lora, head = value("sentiment", "accuracy"), value("sentiment-head", "accuracy")
    gain = None if lora is None or head is None else lora - head
    return [
        Goal("4: MiniLM-L6 with LoRA, accuracy on held-out reviews", 0.9, lora),
        Goal("4: and in front of training the head only", 0.0, gain),
        *(Goal(f"4: {case}, held-out loss in that of the start", 0.8, _lost(value, case), False) for case in SMALL),
        Goal("4: SmolLM2 with DPO, accuracy on held-out pairs", 0.7, value("preference", "preference_accuracy")),
    ]


def _lost(value: Any, case: str) -> float | None:
    return ratio(value(case, "loss"), value(case, "loss", "start"))
