"""What is worth a second look in rows that can be trained on. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator

from core.data.duplicates import Duplicates
from core.data.languages import UsualLanguages
from core.data.problems import FIX, SKIP, WARNING, Problem, excerpt
from core.data.recipe import Recipe
from core.data.records import Record
from core.data.repairs import with_texts
from core.data.sensitive import personal_data_in, secret_in, without_personal_data, without_secrets

LONG_CHARACTERS = 50_000  # about 12,000 tokens of English

# C0 and C1 controls but tab and line ends, and the mark that a text was decoded wrongly
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")
_FIXES = {
    "control_characters": lambda text: _CONTROLS.sub("", text),
    "suspected_secret": without_secrets,
    "personal_data": without_personal_data,
}


class Inspector:
    """Finds warnings in records one after the other, and does with each what the recipe says."""

    def __init__(self, recipe: Recipe, usual: UsualLanguages) -> None:
        self.recipe = recipe
        self._usual = usual
        self._duplicates = Duplicates()

    def inspect(self, record: Record) -> tuple[Record | None, list[Problem]]:
        """The record as it is to be trained on, None to leave it out, and its warnings."""
        problems = []
        for kind, detail in self._in_the_text(record):
            problems.append(_problem(record, kind, detail))
            if self.recipe.action(kind) == FIX:
                record = with_texts(record, _FIXES[kind])
        if any(self.recipe.action(problem.kind) == SKIP for problem in problems):
            return None, problems
        kind, detail = self._duplicates.find(record)
        if kind:
            problems.insert(0, _problem(record, kind, detail))
        return (None if kind and self.recipe.action(kind) == SKIP else record), problems

    def _in_the_text(self, record: Record) -> Iterator[tuple[str, str]]:
        text = _bare(record)
        if control := _CONTROLS.search(text):
            yield "control_characters", f"The text holds the character U+{ord(control.group()):04X}, which is no text."
        if len(text) > LONG_CHARACTERS:
            yield "over_long", f"The row has {len(text):,} characters; what does not fit the maximum length is cut."
        if kind := secret_in(text):
            yield "suspected_secret", f"The text seems to hold {kind}, which a model would learn by heart."
        if kind := personal_data_in(text):
            yield "personal_data", f"The text seems to hold {kind}, which a model may repeat to others."
        if detail := self._usual.unusual(record):
            yield "mixed_language", detail
        if record.messages and record.messages[-1].role != "assistant":
            yield "unanswered", "The last turn has no answer and is left out."


def _bare(record: Record) -> str:
    turns = [*record.messages, *record.rejected]
    parts = [part for turn in turns for part in (turn.content, *(call.arguments for call in turn.tool_calls))]
    return " ".join(parts) if turns else record.text


def _problem(record: Record, kind: str, detail: str) -> Problem:
    text = _bare(record)
    shown = "(not shown)" if secret_in(text[:400]) or personal_data_in(text[:400]) else excerpt(text)
    return Problem(record.row, kind, WARNING, detail, shown, record.file)
