"""Prompts with their completions. Torch-free."""

from __future__ import annotations

from core.data.formats.format import Format, formats, question
from core.data.records import Message
from core.data.text_values import Values, answer_text, first_column, optional_text, required_text

PROMPTS = ("prompt", "input")
COMPLETIONS = ("completion", "response", "output", "answer")


class PromptCompletion(Format):
    """{"prompt": "...", "completion": "..."}; so are "input" and "output", and "response" or "answer"."""

    columns = (PROMPTS, COMPLETIONS)
    optional = ("system",)
    about = "a prompt and its completion"

    def messages(self, values: Values) -> tuple[Message, ...]:
        """The prompt as the question, the completion as the answer."""
        answer = answer_text(values, first_column(values, *COMPLETIONS))
        return question(required_text(values, first_column(values, *PROMPTS)), answer, optional_text(values, "system"))


formats.register("prompt_completion")(PromptCompletion())
