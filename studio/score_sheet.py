"""The figures of a run's held-out rows at the steps where they were measured: `scores.json` in the job's folder.

Curves go to the database too; here is also what is no number a step: confusion matrix and answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio.files import write_atomically

NAME = "scores.json"
Entry = dict[str, Any]


class ScoreSheet:
    """What was measured, by step; a step that is measured again adds to what is there."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.entries: dict[int, Entry] = {entry["step"]: entry for entry in read_scores(folder)}

    def forget_after(self, step: int) -> None:
        """Drop what a run measured after the checkpoint that it goes on from."""
        self.entries = {number: entry for number, entry in self.entries.items() if number <= step}

    def add(self, step: int, scores: Mapping[str, Any]) -> None:
        """Note the scores of a step (`core.scoring.scores.Scores.to_dict`), and keep the sheet on disk."""
        before = self.entries.get(step, {"step": step, "values": {}})
        values = {**before["values"], **scores.get("values", {})}
        self.entries[step] = {**before, **scores, "step": step, "values": values}
        ordered = [self.entries[number] for number in sorted(self.entries)]
        write_atomically(self.path, json.dumps(ordered, ensure_ascii=False))


def read_scores(folder: Path) -> list[Entry]:
    """The entries of a job's sheet, the earliest step first; none when it has none, or a damaged one."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return [entry for entry in found if isinstance(entry["step"], int) and isinstance(entry["values"], dict)]
    except (OSError, ValueError, TypeError, KeyError):
        return []
