"""What a format is. Torch-free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from core.data.records import Message, Record
from core.data.text_values import Values, optional_text
from core.data.tool_calls import tools_in
from core.registry import Registry


class Format(ABC):
    """One shape of a row: how it is recognised by its columns, and how it becomes a record.

    Column names reach a format in lower case and without spaces around them.
    """

    columns: ClassVar[tuple[tuple[str, ...], ...]]  # all of these are needed; of each tuple, one
    optional: ClassVar[tuple[str, ...]] = ()
    about: ClassVar[str]  # for the user: what a row is

    def matches(self, values: Values) -> bool:
        """True when the row has the columns of this format."""
        return all(any(name in values for name in names) for names in self.columns)

    @property
    def needs(self) -> str:
        """The columns, in no language: 'prompt' + 'completion' / 'response'."""
        return " + ".join(" / ".join(map(repr, names)) for names in self.columns)

    @abstractmethod
    def messages(self, values: Values) -> tuple[Message, ...]:
        """The conversation of a row that may or may not match. Raises RowError when it cannot be used."""

    def record(self, number: int, values: Values) -> Record:
        """The record of a row. Raises RowError when it cannot be used."""
        tools = tools_in(values) if "tools" in self.optional else ""
        return Record(number, messages=self.messages(values), tools=tools)


formats: Registry[Format] = Registry("data format")


def question(text: str, answer: str, system: str = "") -> tuple[Message, ...]:
    """A conversation of one question and one answer, after a system message if there is one."""
    return (*system_turn({"system": system}), Message("user", text), Message("assistant", answer))


def system_turn(values: Values) -> tuple[Message, ...]:
    """The message of the column `system`, if there is one."""
    system = optional_text(values, "system")
    return (Message("system", system),) if system.strip() else ()
