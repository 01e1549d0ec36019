"""Measuring a run on its held-out rows: before the first step, while it trains, and of the adapter that is kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.data.records import Record
from core.errors import CheckpointError
from core.scoring.scores import Scores
from studio.context import JobContext
from studio.score_sheet import ScoreSheet

if TYPE_CHECKING:
    from core.train import Trainer

logger = logging.getLogger(__name__)
ROWS_AT_ONCE = 16  # that are answered together


class HeldOut:
    """The held-out rows of one run, and the figures they gave so far."""

    def __init__(self, context: JobContext, trainer: Trainer, records: Sequence[Record]) -> None:
        self.context, self.trainer = context, trainer
        rows = {example.row for example in trainer.examples.validation}
        count = trainer.config.answer_rows if trainer.task.writes else 0
        self.asked = [record for record in records if record.row in rows][:count]
        self.sheet = ScoreSheet(context.folder)
        self.sheet.forget_after(trainer.step)

    def start(self) -> None:
        """Measure the model before its first step, unless an earlier attempt did."""
        if 0 in self.sheet.entries or self.trainer.step or not self.trainer.examples.validation:
            return
        self.context.say("Measuring the model as it is")
        loss = self.trainer.evaluate()
        if loss is not None and math.isfinite(loss):
            self.context.record(0, {"eval_loss": loss})
            self._note(0, loss, with_answers=True)

    def measured(self, step: int, loss: float) -> None:
        """Note what the trainer has just measured, and let the model answer when that is due."""
        every = self.trainer.config.answer_every
        self._note(step, loss, with_answers=bool(every) and step % every == 0)

    def finish(self, folder: Path, step: int) -> dict[str, Any]:
        """Measure the adapter that is kept, of that step, and return the figures before and after for the result."""
        if not self.sheet.entries:
            return {}
        if self.asked and "answers" not in self.sheet.entries.get(step, {}):
            self._answer_with_best(folder, step)
        before, after = self.sheet.entries.get(0), self.sheet.entries.get(step)
        found = {"before": before, "after": after}
        return {"scores": {name: entry["values"] for name, entry in found.items() if entry is not None}}

    def _answer_with_best(self, folder: Path, step: int) -> None:
        from core.checkpoint import restore_best

        self.context.say("Scoring the answers of the adapter")
        try:
            if restore_best(self.trainer, folder) != step:
                return  # the best checkpoint was damaged, and another one is kept
        except CheckpointError as error:
            logger.warning("%s Its answers are not scored.", error.what)
            return
        self.sheet.add(step, self._answers().to_dict())

    def _note(self, step: int, loss: float, with_answers: bool) -> None:
        values = {"perplexity": math.exp(min(loss, 50.0))} if self.trainer.task.writes else {}
        found = self.trainer.scores.to_dict()
        found["values"] = values | found["values"]
        if with_answers and self.asked:
            answers = self._answers().to_dict()
            found = {**found, **answers, "values": found["values"] | answers["values"]}
        self.context.record(step, found["values"])
        self.sheet.add(step, found)

    def _answers(self) -> Scores:
        trainer = self.trainer
        return trainer.task.answer(trainer.model, trainer.tokenizer, self.asked, ROWS_AT_ONCE, self.context.glance)
