"""What can be wrong with one row, and what can be done about it. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

ERROR = "error"
WARNING = "warning"
EXCERPT_LENGTH = 80  # characters

STOP, SKIP, KEEP, FIX = "stop", "skip", "keep", "fix"


@dataclass(frozen=True)
class Kind:
    """A kind of problem: how bad it is, and what may be done with its rows, the default first."""

    level: str  # a row with an error cannot be trained on as it is, one with a warning can
    actions: tuple[str, ...]  # stop: nothing is read until the user decides


_LOST, _MENDABLE = (STOP, SKIP), (STOP, SKIP, FIX)
KINDS = {
    "bad_json": Kind(ERROR, _LOST),
    "bad_csv": Kind(ERROR, _LOST),
    "ragged_row": Kind(ERROR, _LOST),
    "wrong_type": Kind(ERROR, _MENDABLE),  # fix: numbers and yes/no are written as text
    "missing_field": Kind(ERROR, _LOST),
    "empty_answer": Kind(ERROR, _MENDABLE),  # fix: the conversation ends before it
    "role_order": Kind(ERROR, _MENDABLE),  # fix: turns of one speaker are joined
    "no_assistant": Kind(ERROR, _LOST),
    "bad_pair": Kind(ERROR, _LOST),
    "duplicate": Kind(WARNING, (KEEP, SKIP)),
    "near_duplicate": Kind(WARNING, (KEEP, SKIP)),
    "over_long": Kind(WARNING, (KEEP, SKIP)),
    "control_characters": Kind(WARNING, (KEEP, SKIP, FIX)),  # fix: removed
    "mixed_language": Kind(WARNING, (KEEP, SKIP)),
    "suspected_secret": Kind(WARNING, (KEEP, SKIP, FIX)),  # fix: replaced by [removed]
    "personal_data": Kind(WARNING, (KEEP, SKIP, FIX)),
    "unanswered": Kind(WARNING, (KEEP, SKIP)),
    "rated_bad": Kind(WARNING, (SKIP, KEEP)),  # training imitates answers, so that a bad one is left out
}


@dataclass(frozen=True)
class Problem:
    """Something wrong with one row; its kinds are those of KINDS."""

    row: int  # from 1, as an editor shows it
    kind: str
    level: str  # error or warning
    detail: str  # a sentence for the user
    excerpt: str  # the beginning of the row, control characters made visible
    file: str = ""  # its name, where a dataset has several


class RowError(ValueError):
    """Raised by readers and formats for a row that cannot be used; it becomes a `Problem`."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


def excerpt(text: str) -> str:
    """The first characters of a text, safe to show and to store."""
    shown = "".join(_visible(char) for char in text[:EXCERPT_LENGTH])
    return shown + " ..." if len(text) > EXCERPT_LENGTH else shown


def _visible(char: str) -> str:
    if char.isprintable():
        return char
    return " " if char in "\n\r\t" else "\N{REPLACEMENT CHARACTER}"
