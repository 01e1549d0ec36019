"""How long a run is, in steps: every automatic value of a TrainConfig resolved in one place. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.config import TrainConfig

SMALL_DATASET_ROWS = 500  # below this, a smaller batch gives more steps an epoch
EVALUATIONS_PER_RUN = 20
EVALUATION_SHARE = 0.1  # of the training time that automatic measuring may cost
FORWARD_SHARE = 0.5  # time of a forward pass against forward and backward with a frozen base
MICRO_BATCH_ROWS = 8
MICRO_BATCH_TOKENS = 2048
HIGHEST_SUGGESTED_RATE = 2e-3


@dataclass(frozen=True)
class StepPlan:
    """The numbers a run really uses; nothing in it is 0 for "automatic" any more."""

    rows: int
    validation_rows: int
    batch_size: int  # rows an optimizer step
    micro_batch_size: int  # rows a forward pass
    steps_per_epoch: int
    total_steps: int
    eval_every: int
    save_every: int


def plan_steps(rows: int, config: TrainConfig, validation_rows: int = 0, max_length: int = 0) -> StepPlan:
    """Resolve the batch sizes, the number of steps, and when to measure and to save.

    `rows` are the training rows, without the `validation_rows`; `max_length` is the longest example in tokens, 0 when
    it is not known yet (then only the number of rows bounds an automatic micro-batch).
    """
    batch_size = min(config.batch_size or (8 if rows < SMALL_DATASET_ROWS else 16), max(1, rows))
    steps_per_epoch = max(1, math.ceil(rows / batch_size))
    total_steps = max(1, math.ceil(steps_per_epoch * config.epochs - 1e-9))
    if config.max_steps:
        total_steps = min(total_steps, config.max_steps)
    eval_every = config.eval_every or _eval_every(total_steps, batch_size, validation_rows)
    return StepPlan(
        rows=rows,
        validation_rows=validation_rows,
        batch_size=batch_size,
        micro_batch_size=min(config.micro_batch_size or _micro_batch_size(max_length), batch_size),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        eval_every=eval_every,
        save_every=config.save_every or eval_every,
    )


def _micro_batch_size(max_length: int) -> int:
    return max(1, min(MICRO_BATCH_ROWS, MICRO_BATCH_TOKENS // max(1, max_length)))


def _eval_every(total_steps: int, batch_size: int, validation_rows: int) -> int:
    """About 20 measurements a run, fewer where they would take over a tenth of the training time."""
    training = total_steps * batch_size
    affordable = EVALUATION_SHARE * training / (FORWARD_SHARE * max(1, validation_rows))
    measurements = max(1, min(EVALUATIONS_PER_RUN, int(affordable)))
    return max(1, round(total_steps / measurements))


def suggest_learning_rate(hidden_size: int) -> float:
    """A learning rate for LoRA on a model this wide: 5e-4 * (2000 / width)^0.781, rounded to two digits.

    Narrow models take larger steps. Fitted on Llama models by Thinking Machines ("LoRA Without Regret", 2025), and
    capped for widths far below theirs.
    """
    rate = 5e-4 * (2000 / max(1, hidden_size)) ** 0.781
    return float(f"{min(rate, HIGHEST_SUGGESTED_RATE):.1e}")
