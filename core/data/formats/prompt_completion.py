"""Prompts with their completions. Torch-free."""

from __future__ import annotations

from core.data.formats.format import Format, formats, question
from core.data.records import Message
from core.data.text_values import Values, answer_text, first_column, optional_text, required_text


class PromptCompletion(Format):
    """{"prompt": "...", "completion": "..."}; "response" instead of "completion" is read too."""

    columns = (("prompt",), ("completion", "response"))
    optional = ("system",)
    about = "a prompt and its completion"

    def messages(self, values: Values) -> tuple[Message, ...]:
        """The prompt as the question, the completion as the answer."""
        answer = answer_text(values, first_column(values, "completion", "response"))
        return question(required_text(values, "prompt"), answer, optional_text(values, "system"))


formats.register("prompt_completion")(PromptCompletion())
