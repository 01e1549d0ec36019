"""What a row of any dataset becomes: a conversation, or a plain text. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool by the assistant."""

    name: str
    arguments: str  # a JSON object
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str  # system, user, assistant or tool
    content: str
    tool_calls: tuple[ToolCall, ...] = ()  # only the assistant's
    name: str = ""  # of the tool, in its answer
    call_id: str = ""  # of the call that a tool answers


@dataclass(frozen=True)
class Record:
    """One row to train on: `messages`, or else `text`, which takes no template and is trained whole.

    `row` counts from 1 and is the line where the row begins, as an editor shows it (the row number in parquet).
    """

    row: int
    messages: tuple[Message, ...] = ()
    text: str = ""
    rejected: tuple[Message, ...] = ()  # of a preference pair: the same prompt with the answer that is worse
    tools: str = ""  # a JSON list of the tools that the assistant may call
    file: str = ""  # its name, where a dataset has several

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
    def sides(self) -> tuple[Record, ...]:
        """The texts that a model reads of it: itself, and of a preference pair also the one with the worse answer."""
        return (self, replace(self, messages=self.rejected)) if self.rejected else (self,)

    @property
    def whole(self) -> str:
        """Every turn of the row, in the same form as `prompt`."""
        if not self.messages:
            return self.text
        return _joined(self.messages) + (f"\x1e\x1e{_joined(self.rejected)}" if self.rejected else "")


def _joined(messages: Sequence[Message]) -> str:
    return "\x1e".join(f"{message.role}\x1f{message.content}{_calls(message)}" for message in messages)


def _calls(message: Message) -> str:
    return "".join(f"\x1f{call.name}\x1f{call.arguments}" for call in message.tool_calls)
