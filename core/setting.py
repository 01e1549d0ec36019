"""What a setting is: a dataclass field with its default, range and help, and the checks that follow. Torch-free.

Values come out of YAML, JSON, forms and people's hands, so that any value may be of any type.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from core.errors import ConfigError

MOST_SHOWN = 80  # characters of a wrong value


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    unit: str = "",
    basic: bool = False,
) -> Any:
    """A dataclass field that carries what a form, a CLI and a docs table need to show it.

    `basic` fields stand on the first page of the form; the others are folded under "Advanced".
    """
    about = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices, "unit": unit, "basic": basic}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=about)
    return field(default=default, metadata=about)


def type_name(item: dataclasses.Field[Any]) -> str:
    """The type of a field as it is written: "int", whether its module keeps annotations as text or not."""
    return item.type.__name__ if isinstance(item.type, type) else str(item.type)


class Checked:
    """Checks every field against its type, and the range and the choices of its own metadata.

    What YAML and forms write otherwise takes the field's type: lists become tuples, and 8 becomes 8.0 or the reverse.
    """

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, item.name, _checked(item, getattr(self, item.name)))


def _checked(item: dataclasses.Field[Any], value: Any) -> Any:
    """The value of a field; ConfigError names the field where it cannot be one."""
    kind, choices = type_name(item), item.metadata.get("choices")
    if choices and not (isinstance(value, str) and value in choices):
        raise ConfigError(f"{item.name} is {shown(value)}.", f"Pick one of: {', '.join(choices)}.")
    if kind == "bool" and not isinstance(value, bool):
        raise ConfigError(f"{item.name} is {shown(value)}.", "Write true or false.")
    if kind in ("int", "float"):
        return _number(item, kind, value)
    if "tuple" in kind:
        return _names(item, kind, value)
    if kind.startswith("Mapping"):
        return _pairs(item, value)
    if kind == "str" and not isinstance(value, str):
        raise ConfigError(f"{item.name} is {shown(value)}, which is not a text.", f"The default is {item.default}.")
    section: Any = item.default_factory  # a config of its own, or no type
    if isinstance(section, type) and not isinstance(value, section):
        raise ConfigError(f"{item.name} is {shown(value)}.", "Write names, each with its value.")
    return value


def _number(item: dataclasses.Field[Any], kind: str, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(
            f"{item.name} is {shown(value)}, which is not a number.", f"Give a number, for example {item.default}."
        )
    if kind == "int" and isinstance(value, float) and not value.is_integer():
        near = round(value) if math.isfinite(value) else item.default
        raise ConfigError(
            f"{item.name} is {value}, which is not a whole number.", f"Give a whole number, for example {near}."
        )
    low, high = item.metadata.get("minimum"), item.metadata.get("maximum")
    if not ((low is None or value >= low) and (high is None or value <= high)):  # also refuses NaN
        span = (
            f"at least {low}" if high is None else f"between {low} and {high}" if low is not None else f"at most {high}"
        )
        raise ConfigError(f"{item.name} is {shown(value)}; it must be {span}.", f"The default is {item.default}.")
    return int(value) if kind == "int" else float(value)


def _names(item: dataclasses.Field[Any], kind: str, value: Any) -> str | tuple[str, ...]:
    """Names as a tuple; a text stays one where the field takes a regular expression, and is one name elsewhere."""
    if isinstance(value, str):
        return value if kind.startswith("str") else (value,)
    if not isinstance(value, (tuple, list, set, frozenset)) or not all(isinstance(name, str) for name in value):
        raise ConfigError(
            f"{item.name} is {shown(value)}, which is not a list of names.",
            "Write names, for example [q_proj, v_proj].",
        )
    return tuple(value)


def _pairs(item: dataclasses.Field[Any], value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{item.name} is {shown(value)}.", "Write names, each with its value.")
    return value


def shown(value: Any) -> str:
    """A value for a sentence, cut where it is long."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
