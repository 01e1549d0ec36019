"""Preference pairs: two answers to one prompt, one better than the other. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from core.data.formats.format import Format, formats, system_turn
from core.data.problems import RowError
from core.data.readers.strict_json import parse_json
from core.data.records import Message, Record
from core.data.text_values import Values, answer_text, first_column, kind_of, nothing_in
from core.data.tool_calls import tools_in
from core.data.turns import any_turns, check_turns

_PROMPTS = ("prompt", "question", "instruction", "messages", "conversations")
_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")  # Anthropic's hh-rlhf


class Preference(Format):
    """{"prompt": "...", "chosen": "...", "rejected": "..."}, texts or lists of turns.

    Lists may hold the whole conversation, or the answer alone after a prompt.
    """

    columns = (("chosen",), ("rejected",))
    optional = ("prompt", "system", "tools")
    about = "preference pairs: a prompt, the better answer and the worse one"

    def messages(self, values: Values) -> tuple[Message, ...]:
        """The prompt with the better answer."""
        return _conversation(values, "chosen")

    def record(self, number: int, values: Values) -> Record:
        """Both conversations. Raises RowError: also bad_pair, for prompts that differ or answers that do not."""
        chosen, rejected = self.messages(values), _conversation(values, "rejected")
        for turns in (chosen, rejected):
            check_turns(turns)
        if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
            raise RowError("no_assistant", "A pair must end with two answers.")
        if chosen[:-1] != rejected[:-1]:
            raise RowError("bad_pair", "The two answers follow different prompts.")
        if chosen == rejected:
            raise RowError("bad_pair", "The two answers are the same.")
        return Record(number, messages=chosen, rejected=rejected, tools=tools_in(values))


def _conversation(values: Values, column: str) -> tuple[Message, ...]:
    answer = _parsed(values.get(column))
    if isinstance(answer, Mapping):
        answer = [answer]
    if isinstance(answer, list):
        turns = any_turns(
            [{"role": "assistant", "content": text} if isinstance(text, str) else text for text in answer]
        )
    elif not any(name in values for name in _PROMPTS):
        turns = _hh_turns(column, answer_text(values, column))
    else:
        turns = (Message("assistant", answer_text(values, column)),)
    if turns and turns[0].role != "assistant":
        return turns if turns[0].role == "system" else (*system_turn(values), *turns)
    return (*system_turn(values), *_prompt(values), *turns)


def _prompt(values: Values) -> tuple[Message, ...]:
    column = first_column(values, *_PROMPTS)
    prompt = _parsed(values.get(column))
    if isinstance(prompt, list):
        return any_turns(prompt)
    if prompt is None or not str(prompt).strip():
        raise nothing_in(values, column)
    if not isinstance(prompt, str):
        raise RowError("wrong_type", f"The column '{column}' holds {kind_of(prompt)} where a text is needed.")
    return (Message("user", prompt),)


def _hh_turns(column: str, text: str) -> tuple[Message, ...]:
    """The turns of a text such as "Human: ... Assistant: ...", each after a blank line."""
    first, *parts = _HH_TURN.split(text)
    if first.strip() or not parts:
        raise RowError(
            "missing_field", f"There is no prompt: '{column}' must hold turns, or a column 'prompt' be there."
        )
    speakers = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(speakers[who], said) for who, said in zip(parts[::2], parts[1::2], strict=True))


def _parsed(value: Any) -> Any:
    """A list or an object, also one written as JSON in a table's cell; any other text stays one."""
    if not (isinstance(value, str) and value.lstrip()[:2] in ("[{", '["', '{"')):
        return value
    try:
        return parse_json(value)
    except RowError:
        return value


formats.register("preference")(Preference())
