"""ShareGPT conversations. Torch-free."""

from __future__ import annotations

from core.data.formats.format import Format, formats, system_turn
from core.data.records import Message
from core.data.text_values import Values, first_column, list_in
from core.data.turns import any_turns


class ShareGPT(Format):
    """{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}, or with "system"."""

    columns = (("conversations", "conversation"),)
    optional = ("system", "tools")
    about = "ShareGPT: a list of turns with 'from' and 'value'"

    def messages(self, values: Values) -> tuple[Message, ...]:
        """The turns; many files under this name hold 'role' and 'content', or plain texts, which is read too."""
        turns = any_turns(list_in(values, first_column(values, "conversations", "conversation")))
        return (*system_turn(values), *turns)


formats.register("sharegpt")(ShareGPT())
