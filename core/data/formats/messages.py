"""Chat messages as OpenAI writes them. Torch-free."""

from __future__ import annotations

from core.data.formats.format import Format, formats
from core.data.records import Message
from core.data.text_values import Values, list_in
from core.data.turns import read_turns


class Messages(Format):
    """{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}], "tools": [...]}"""

    columns = (("messages",),)
    optional = ("tools",)
    about = "chat messages: a list of turns with 'role' and 'content'"

    def messages(self, values: Values) -> tuple[Message, ...]:
        """The turns as they stand."""
        return read_turns(list_in(values, "messages"), "role", "content")


formats.register("messages")(Messages())
