"""One row as a reader gives it. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.data.problems import ERROR, Problem, RowError, excerpt


@dataclass(frozen=True)
class Row:
    """A row's values by column, or the problem that kept it from being read."""

    number: int  # from 1: the line where it begins, as an editor shows it; in parquet, the row
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: Problem | None = None

    @classmethod
    def bad(cls, number: int, error: RowError, source: str) -> Row:
        """A row that could not be read; `source` is its text."""
        return cls(number, problem=Problem(number, error.kind, ERROR, error.detail, excerpt(source)))
