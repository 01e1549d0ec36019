"""One row as a reader gives it. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.data.problems import ERROR, Problem, RowError, excerpt


def row_values(value: Any, what: str) -> Mapping[str, Any]:
    """The columns of a parsed row; one that is itself a list of turns becomes a column. Raises RowError: wrong_type."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):
        return {"turns": value}
    if (
        isinstance(value, list)
        and value
        and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in value)
    ):
        return {"conversations" if "from" in value[0] else "messages": value}
    raise RowError("wrong_type", f"The {what} is not an object {{...}} with named columns.")


@dataclass(frozen=True)
class Row:
    """A row's values by column, or the problem that kept it from being read."""

    number: int  # from 1: the line where it begins, as an editor shows it; in parquet, the row
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: Problem | None = None
    source: str = ""  # of a row that could not be read: its text

    @classmethod
    def bad(cls, number: int, error: RowError, source: str) -> Row:
        """A row that could not be read; `source` is its text."""
        return cls(number, problem=Problem(number, error.kind, ERROR, error.detail, excerpt(source)), source=source)
