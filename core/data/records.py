"""What a row of any dataset becomes: a conversation, or a plain text. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True)
class Record:
    """One row to train on: `messages`, or else `text`, which takes no template and is trained whole.

    `row` counts from 1 and is the line where the row begins, as an editor shows it (the row number in parquet).
    """

    row: int
    messages: tuple[Message, ...] = ()
    text: str = ""

    @property
    def prompt(self) -> str:
        """Everything before the first answer; of a plain text, the whole text.

        Control characters separate the turns, so that two different conversations cannot read the same.
        """
        if not self.messages:
            return self.text
        roles = [message.role for message in self.messages]
        first = roles.index("assistant") if "assistant" in roles else len(roles)
        return _joined(self.messages[:first])

    @property
    def whole(self) -> str:
        """Every turn of the row, in the same form as `prompt`."""
        return _joined(self.messages) if self.messages else self.text


def _joined(messages: tuple[Message, ...]) -> str:
    return "\x1e".join(f"{message.role}\x1f{message.content}" for message in messages)
