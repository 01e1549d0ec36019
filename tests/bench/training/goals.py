"""The goals of the training step on a GPU, as ratios of rows of one run."""

from __future__ import annotations

from typing import Any

from tests.bench.record import Goal, median, ratio


class Rows:
    """What was measured, by group and side."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def value(self, group: str, side: str, key: str = "tokens_per_s") -> float | None:
        """One figure of a side; of one that was measured several times the median."""
        rows = [row for row in self.rows if (row["group"], row["side"]) == (group, side) and not row.get("problem")]
        found = [row[key] for row in rows if row.get(key)]
        return median(found) if found else None

    def at_least(self, text: str, bound: float, group: str, above: str, below: str, key: str = "tokens_per_s") -> Goal:
        """A goal on how much larger a figure of one side is than that of another."""
        measured = ratio(self.value(group, above, key), self.value(group, below, key))
        return Goal(text, bound, measured, note=self._problems(group, above, below))

    def at_most(self, text: str, bound: float, group: str, above: str, below: str, key: str = "ms") -> Goal:
        """A goal on how little larger it is."""
        measured = ratio(self.value(group, above, key), self.value(group, below, key))
        return Goal(text, bound, measured, at_least=False, note=self._problems(group, above, below))

    def _problems(self, group: str, *sides: str) -> str:
        found = [row.get("problem") for row in self.rows if row["group"] == group and row["side"] in sides]
        return "; ".join(dict.fromkeys(str(problem)[:120] for problem in found if problem))


def goals(rows: list[dict[str, Any]]) -> list[Goal]:
    """All goals, also those that this run says nothing about."""
    of = Rows(rows)
    return [
        of.at_least("1: 8B shape against peft with autocast", 1.6, "large", "ours", "peft"),
        of.at_least("1: 8B shape against Unsloth without checkpointing", 1.12, "large", "ours", "unsloth"),
        Goal("1: 8B shape, useful FLOPs in the matmul rate", 0.75, of.value("large", "ours", "of_matmul")),
        of.at_most("1: 8B shape, memory in that of Unsloth", 1.0, "large", "ours", "unsloth", "peak_gib"),
        of.at_least("1: in 17.8 GiB, against Unsloth with checkpointing", 1.2, "large", "ours_capped", "unsloth_gc"),
        of.at_least("2: NF4 against Unsloth", 1.15, "nf4", "ours_nf4_capped", "unsloth_nf4_gc"),
        Goal("2: NF4, peak GiB", 8.2, of.value("nf4", "ours_nf4_capped", "peak_gib"), at_least=False),
        of.at_least("3: 135M shape, 8 x 512, against Unsloth", 4.0, "small", "ours", "unsloth"),
        of.at_least("3: 135M shape, 8 x 512, against peft", 5.0, "small", "ours", "peft"),
        of.at_least("3: 1B shape, 4 x 512, against Unsloth", 4.0, "short", "ours", "unsloth"),
        of.at_least("4: ragged rows against peft with dynamic padding", 3.0, "ragged", "ours", "peft"),
        of.at_least("4: ragged rows against Unsloth", 1.3, "ragged", "ours", "unsloth"),
        of.at_least("5: longest row against peft", 2.0, "longest", "ours", "peft", "longest_tokens"),
        of.at_most("6: our DoRA step in our LoRA step", 1.15, "dora", "ours_dora", "ours"),
        of.at_least("6: DoRA against peft", 2.0, "dora", "ours_dora", "peft_dora"),
        of.at_most("6: our LoRA step in that of the frozen base", 1.10, "large", "ours", "frozen"),
    ]
