"""Alpaca instructions. Torch-free."""

from __future__ import annotations

from core.data.formats.format import Format, formats, question, system_turn
from core.data.problems import RowError
from core.data.records import Message
from core.data.text_values import Values, answer_text, first_column, list_in, optional_text, required_text

OUTPUTS = ("output", "response", "answer")


class Alpaca(Format):
    """{"instruction": "...", "input": "...", "output": "..."}, perhaps with "system" and "history".

    Dolly's "context" is read as the input, its "response" as the output.
    """

    columns = (("instruction",), OUTPUTS)
    optional = ("input", "system", "history")
    about = "Alpaca: an instruction, perhaps an input, and an output"

    def messages(self, values: Values) -> tuple[Message, ...]:
        """The instruction with the input under it as the question, after the turns of the history."""
        asked = required_text(values, "instruction")
        given = optional_text(values, first_column(values, "input", "context"))
        answer = answer_text(values, first_column(values, *OUTPUTS))
        turns = question(f"{asked}\n\n{given}" if given.strip() else asked, answer)
        return (*system_turn(values), *_history(values), *turns)


def _history(values: Values) -> tuple[Message, ...]:
    """Earlier turns, as LLaMA-Factory writes them: [["question", "answer"], ...]."""
    if not values.get("history"):
        return ()
    turns: tuple[Message, ...] = ()
    for pair in list_in(values, "history"):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RowError("wrong_type", "The column 'history' must hold [question, answer] pairs of texts.")
        turns += question(*pair)
    return turns


formats.register("alpaca")(Alpaca())
