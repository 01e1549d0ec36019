"""Answering, sequence to sequence: a question, perhaps about a passage, in; the answer out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from core.data.records import Record
from core.scoring.scores import Scores
from core.tasks import choice
from core.tasks.answering import answered, text_scores
from core.tasks.seq2seq import Seq2Seq
from core.tasks.task import Tick, idle

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class QuestionAnswering(Seq2Seq):
    """Scored by exact match and by the words that answers share (token F1)."""

    name = choice.QUESTION_ANSWERING

    def answer(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], rows: int, tick: Tick = idle
    ) -> Scores:
        """Exact match and token F1, and where JSON is expected, how much of it is right."""
        return text_scores(answered(model, tokenizer, records, rows, tick))
