"""ShareGPT conversations. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping

from core.data.formats.format import Format, formats
from core.data.records import Message
from core.data.text_values import Values, list_in, optional_text
from core.data.turns import read_turns


class ShareGPT(Format):
    """{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}, or with "system"."""

    columns = (("conversations", "conversation"),)
    optional = ("system",)
    about = "ShareGPT: a list of turns with 'from' and 'value'"

    def messages(self, values: Values) -> tuple[Message, ...]:
        """The turns; many files under this name have 'role' and 'content' instead, which is read too."""
        column = "conversations" if "conversations" in values else "conversation"
        items = list_in(values, column)
        as_roles = bool(items) and isinstance(items[0], Mapping) and "role" in items[0]
        turns = read_turns(items, "role", "content") if as_roles else read_turns(items, "from", "value")
        system = optional_text(values, "system")
        return (Message("system", system), *turns) if system.strip() else turns


formats.register("sharegpt")(ShareGPT())
