"""Held-out rows, answered by the model as it is now, and scored as texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from core.config import GenerationConfig
from core.data.records import Record
from core.generate import generate
from core.scoring.answers import score, token_f1
from core.scoring.scores import Answer, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROOM = 1.25  # times the longest expected answer is where an answer is cut


def answered(
    model: Any, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], rows: int, tick: Callable[[], None]
) -> tuple[Answer, ...]:
    """The last turn of each record as the active adapters give it, greedily; records that end with no answer are left.

    `rows` of them at a time; `tick` is called after each time.
    """
    asked = [record for record in records if record.messages and record.messages[-1].role == "assistant"]
    expected = [record.messages[-1].content for record in asked]
    longest = max((len(tokenizer(text)["input_ids"]) for text in expected), default=0)
    config = GenerationConfig(max_new_tokens=max(1, int(longest * ROOM) + 2), temperature=0.0)
    given: list[str] = []
    for start in range(0, len(asked), rows):
        prompts = [record.messages[:-1] for record in asked[start : start + rows]]
        given += generate(model, tokenizer, prompts, config=config)
        tick()
    return tuple(
        Answer(record.messages[-2].content if len(record.messages) > 1 else "", want, have)
        for record, want, have in zip(asked, expected, given, strict=True)
    )


def text_scores(answers: Sequence[Answer]) -> Scores:
    """Exact match and token F1, and where every expected answer is a JSON object, the share that is valid."""
    if not answers:
        return Scores()
    expected, given = [answer.expected for answer in answers], [answer.given for answer in answers]
    plain = score(expected, given)
    values = {name: float(value) for name, value in plain.items() if isinstance(value, float)}
    return Scores(values | {"token_f1": token_f1(expected, given)}, answers=tuple(answers))
