"""Questions with their answers, perhaps about a passage. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.data.formats.format import Format, formats, question
from core.data.readers.strict_json import parse_json
from core.data.records import Message
from core.data.text_values import Values, answer_text, first_column, optional_text, required_text


class QuestionAnswer(Format):
    """{"question": "...", "answer": "...", "context": "..."}; SQuAD's "answers": {"text": ["..."]} is read too."""

    columns = (("question",), ("answer", "answers", "response", "output"))
    optional = ("context", "system")
    about = "a question and its answer, perhaps with the passage it is about"

    def messages(self, values: Values) -> tuple[Message, ...]:
        """The context, if there is one, with the question under it."""
        asked, context = required_text(values, "question"), optional_text(values, "context")
        prompt = f"{context}\n\n{asked}" if context.strip() else asked
        column = first_column(values, *self.columns[1])
        answer = _first_answer(values[column]) if column == "answers" else answer_text(values, column)
        return question(prompt, answer, optional_text(values, "system"))


def _first_answer(answers: Any) -> str:
    """The first of several right answers: a list of texts or of objects with "text", or SQuAD's object of lists."""
    if isinstance(answers, str) and answers.lstrip()[:1] in ("[", "{"):
        answers = parse_json(answers)
    if isinstance(answers, Mapping):
        answers = answers.get("text")
    if isinstance(answers, list):
        answers = answers[0] if answers else ""
    if isinstance(answers, Mapping):
        answers = answers.get("text")
    return answer_text({"answers": answers}, "answers")


formats.register("question_answer")(QuestionAnswer())
