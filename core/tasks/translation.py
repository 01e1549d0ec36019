"""Translation, sequence to sequence: a sentence in, its translation out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from core.data.records import Record
from core.scoring.scores import Scores
from core.scoring.translation import has_sacrebleu, translation_scores
from core.tasks import choice
from core.tasks.answering import answered, text_scores
from core.tasks.seq2seq import Seq2Seq
from core.tasks.task import Tick, idle

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class Translation(Seq2Seq):
    """Scored by BLEU and chrF."""

    name = choice.TRANSLATION

    def answer(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], rows: int, tick: Tick = idle
    ) -> Scores:
        """BLEU and chrF where sacrebleu is installed, and the figures of any answer."""
        answers = answered(model, tokenizer, records, rows, tick)
        plain = text_scores(answers)
        if not has_sacrebleu():
            logger.warning("BLEU and chrF are not measured: pip install 'lora-studio[eval]'")
            return plain
        known = translation_scores([answer.expected for answer in answers], [answer.given for answer in answers])
        return Scores({**known, **plain.values}, answers=plain.answers)
