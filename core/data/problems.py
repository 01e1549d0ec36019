"""What can be wrong with one row. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

ERROR = "error"
WARNING = "warning"
EXCERPT_LENGTH = 80  # characters


@dataclass(frozen=True)
class Problem:
    """Something wrong with one row; a row with an error cannot be trained on, one with a warning can.

    Errors: bad_json, bad_csv, ragged_row, too_long, wrong_type, missing_field, empty_answer, role_order, no_assistant,
    bad_pair.
    Warnings: duplicate, control_characters, over_long, suspected_secret, unanswered.
    """

    row: int  # from 1, as an editor shows it
    kind: str
    level: str  # error or warning
    detail: str  # a sentence for the user
    excerpt: str  # the beginning of the row, control characters made visible


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
