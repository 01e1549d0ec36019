"""Dialogues as bare lists of texts. Torch-free."""

from __future__ import annotations

from core.data.formats.format import Format, formats, system_turn
from core.data.records import Message
from core.data.text_values import Values, first_column, list_in
from core.data.turns import any_turns

COLUMNS = ("turns", "dialogue", "dialog", "utterances")


class Turns(Format):
    """{"turns": ["Hello", "Hi!", "How are you?", "Fine."]}; a row that is such a list by itself is read too."""

    columns = (COLUMNS,)
    optional = ("system",)
    about = "a list of texts: the user's and the assistant's by turns"

    def messages(self, values: Values) -> tuple[Message, ...]:
        """The texts, the user's first."""
        return (*system_turn(values), *any_turns(list_in(values, first_column(values, *COLUMNS))))


formats.register("turns")(Turns())
