"""Plain text, trained whole. Torch-free."""

from __future__ import annotations

from core.data.formats.format import Format, formats
from core.data.records import Message, Record
from core.data.text_values import Values, required_text


class Text(Format):
    """{"text": "..."}"""

    columns = (("text",),)
    about = "plain text: every token is trained"

    def messages(self, values: Values) -> tuple[Message, ...]:
        """None: plain text takes no chat template."""
        return ()

    def record(self, number: int, values: Values) -> Record:
        """The text as it stands."""
        return Record(number, text=required_text(values, "text"))


formats.register("text")(Text())
