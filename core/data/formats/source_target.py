"""Sources with their targets, such as sentences and their translations. Torch-free."""

from __future__ import annotations

from core.data.formats.format import Format, formats, question
from core.data.records import Message
from core.data.text_values import Values, answer_text, optional_text, required_text


class SourceTarget(Format):
    """{"source": "...", "target": "..."}"""

    columns = (("source",), ("target",))
    optional = ("system",)
    about = "a source text and its target, such as a translation"

    def messages(self, values: Values) -> tuple[Message, ...]:
        """The source as the question, the target as the answer."""
        answer = answer_text(values, "target")
        return question(required_text(values, "source"), answer, optional_text(values, "system"))


formats.register("source_target")(SourceTarget())
