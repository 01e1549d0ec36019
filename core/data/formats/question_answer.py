"""Questions with their answers, perhaps about a passage. Torch-free."""

from __future__ import annotations

from core.data.formats.format import Format, formats, question
from core.data.records import Message
from core.data.text_values import Values, answer_text, optional_text, required_text


class QuestionAnswer(Format):
    """{"question": "...", "answer": "...", "context": "..."}"""

    columns = (("question",), ("answer",))
    optional = ("context", "system")
    about = "a question and its answer, perhaps with the passage it is about"

    def messages(self, values: Values) -> tuple[Message, ...]:
        """The context, if there is one, with the question under it."""
        asked, context = required_text(values, "question"), optional_text(values, "context")
        prompt = f"{context}\n\n{asked}" if context.strip() else asked
        return question(prompt, answer_text(values, "answer"), optional_text(values, "system"))


formats.register("question_answer")(QuestionAnswer())
