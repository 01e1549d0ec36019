"""Which format a dataset has, by its columns and never by its contents. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from core.data.formats import Format, formats
from core.data.text_values import Values
from core.errors import DatasetError

ENOUGH = 0.5  # share of the rows that must match


@dataclass(frozen=True)
class Detection:
    """The format that fits best, the rule in words, and the share of the rows that match it."""

    format: str
    rule: str
    share: float


def detect(rows: Sequence[Values]) -> Detection:
    """Pick the format that most rows match; of equals, the one that needs more columns.

    Raises DatasetError, with the columns found and what each format needs, when no format matches half of the rows.
    """
    shares = {name: match_share(rows, formats.get(name)) for name in formats.names()}
    ranked = sorted(shares, key=lambda name: (-shares[name], *_rank(rows, formats.get(name))))
    best = ranked[0]
    if not rows or shares[best] < ENOUGH:
        partly = f"only {shares[best]:.0%} of the rows look like {best}" if shares[best] else "no format fits"
        raise unknown_columns(rows, partly)
    also = [name for name in ranked[1:] if shares[name] == shares[best] and not _within(name, best, rows)]
    return Detection(best, rule_of(best) + (f"; they also fit {', '.join(also)}" if also else ""), shares[best])


def match_share(rows: Sequence[Values], format: Format) -> float:
    """Share of the rows that have the columns of a format."""
    return sum(format.matches(values) for values in rows) / len(rows) if rows else 0.0


def rule_of(name: str) -> str:
    """Why rows are taken for this format, in words."""
    return f"rows with the column{'s' if len(formats.get(name).columns) > 1 else ''} {formats.get(name).needs}"


def _rank(rows: Sequence[Values], format: Format) -> tuple[int, int, int]:
    """Sorts formats that need more columns first; `text`, which a chat file may carry beside its turns, last.

    Of equals, the one whose own names the rows have, rather than synonyms.
    """
    own_names = sum(names[0] in values for values in rows for names in format.columns)
    return -len(format.columns), int(format.columns == (("text",),)), -own_names


def _within(name: str, best: str, rows: Sequence[Values]) -> bool:
    """True when `best` reads all that `name` would read of the rows, so that saying so tells the user nothing."""
    there = {column for values in rows for column in values}
    wanted = {column for names in formats.get(name).columns for column in names} & there
    return wanted <= {*chain(*formats.get(best).columns), *formats.get(best).optional}


def unknown_columns(rows: Sequence[Values], what: str) -> DatasetError:
    """The error for rows of no known shape: the columns they have, and those that each format needs."""
    needs = "; ".join(f"{name}: {formats.get(name).needs}" for name in formats.names())
    return DatasetError(
        f"The columns are not known: {what}. Found: {_found(rows)}.",
        "Choose the format, then say which column holds what; or name the columns as one of the formats needs them "
        f"({needs}).",
    )


def other_columns(rows: Sequence[Values], format: str, file: str) -> DatasetError:
    """The error for rows that do not have the columns of a format that was chosen for them."""
    return DatasetError(
        f"{file} has no row in the format {format}. Its columns: {_found(rows)}.",
        f"Say which of them are {formats.get(format).needs}, or pick another format.",
    )


def _found(rows: Sequence[Values]) -> str:
    columns = list(dict.fromkeys(str(name) for values in rows for name in values))
    return (", ".join(repr(name[:40]) for name in columns[:20]) + (", ..." if len(columns) > 20 else "")) or "none"
