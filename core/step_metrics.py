"""What a Trainer reports after each step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step did."""

    step: int  # from 1
    total_steps: int
    epoch: float  # how often every row has been seen
    loss: float  # mean -log p per trained token, before the step's update
    learning_rate: float
    grad_norm: float  # before clipping
    tokens: int  # without padding
    positions: int  # that the model computed, padding included; fewer than tokens where rows share a beginning
    trained_tokens: int
    seconds: float  # of the step alone, without measuring
    eval_loss: float | None  # mean -log p per trained token of the validation rows, when they were measured
    is_best: bool  # the lowest eval_loss so far
    save: bool  # the caller should save a checkpoint now
    stopped_early: bool  # this was the last step, since the validation loss no longer fell
    notes: tuple[str, ...] = ()  # what a log should tell about this step, such as a lack of memory
