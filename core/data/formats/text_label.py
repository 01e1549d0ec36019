"""Texts with their labels. Torch-free."""

from __future__ import annotations

from core.data.formats.format import Format, formats, question
from core.data.records import Message
from core.data.text_values import Values, answer_text, optional_text, required_text


class TextLabel(Format):
    """{"text": "...", "label": "positive"}; a label may be a whole number."""

    columns = (("text",), ("label",))
    optional = ("system",)
    about = "a text and its label"

    def messages(self, values: Values) -> tuple[Message, ...]:
        """The text as the question, the label as the answer, so that any chat model can learn it."""
        return question(required_text(values, "text"), answer_text(values, "label"), optional_text(values, "system"))


formats.register("text_label")(TextLabel())
