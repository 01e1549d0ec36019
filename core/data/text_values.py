"""Reading texts out of a row's columns. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.data.problems import RowError
from core.data.readers.strict_json import parse_json

Values = Mapping[str, Any]  # column, in lower case -> value

_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}


def first_column(values: Values, *columns: str) -> str:
    """The first of these columns that the row has; the first of all when it has none."""
    return next((column for column in columns if column in values), columns[0])


def required_text(values: Values, column: str) -> str:
    """A question or another text that must be there. Raises RowError: missing_field, wrong_type."""
    text = optional_text(values, column)
    if not text.strip():
        raise nothing_in(values, column)
    return text


def answer_text(values: Values, column: str) -> str:
    """An answer, which must not be empty. Raises RowError: missing_field, wrong_type, empty_answer."""
    if column not in values:
        raise nothing_in(values, column)
    text = optional_text(values, column)
    if not text.strip():
        raise RowError("empty_answer", f"The answer, in the column '{column}', is empty.")
    return text


def optional_text(values: Values, column: str) -> str:
    """A text that may be missing or null, which reads as ""; whole numbers are written out. Raises RowError."""
    value = values.get(column)
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RowError("wrong_type", f"The column '{column}' holds {kind_of(value)} where a text is needed.")
    return value


def nothing_in(values: Values, column: str) -> RowError:
    """The error for a column that is not there, or has no value."""
    what = f"The column '{column}' is empty." if column in values else f"The column '{column}' is missing."
    return RowError("missing_field", what)


def list_in(values: Values, column: str) -> list[Any]:
    """A list, also one written as JSON in a table's cell. Raises RowError: missing_field, wrong_type, bad_json."""
    value = values.get(column)
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_json(value)
    if value is None:
        raise nothing_in(values, column)
    if not isinstance(value, list):
        raise RowError("wrong_type", f"The column '{column}' holds {kind_of(value)} where a list is needed.")
    return value


def kind_of(value: Any) -> str:
    """The type of a value in words."""
    return "nothing" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")
