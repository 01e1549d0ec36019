"""What the trainer asks of a task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from core.config import TrainConfig
from core.data.records import Record
from core.data.template import Progress
from core.examples import Example, Examples
from core.mode import mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class CountedBatch(Protocol):
    """A batch of any task, which knows how many tokens it holds beside its padding."""

    n_tokens: int
    input_ids: Tensor


class Task:
    """A task; subclasses say how records become batches and what the loss of a batch is."""

    def prepare(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
        context_length: int,
        progress: Progress | None,
        virtual_tokens: int,
    ) -> Examples:
        """Split the records and tokenise both sides; DatasetError when there is nothing to train on."""
        raise NotImplementedError

    def bind(self, model: nn.Module) -> None:
        """Called once with the model as it will train, its adapter on it."""

    def collate(self, examples: Sequence[Any], pad_id: int) -> Any:
        """Put examples into one batch, padded on the right."""
        raise NotImplementedError

    def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
        """The sum of the loss over everything that is trained in a batch, a scalar in float32 or better."""
        raise NotImplementedError


@torch.no_grad()
def mean_loss(task: Task, model: nn.Module, examples: Sequence[Example], pad_id: int, micro_batch_size: int) -> float:
    """Mean loss per trained term over all examples, dropout off; NaN when there is nothing to measure.

    Terms count the same whatever row they stand in.
    """
    trained = sum(example.n_trained for example in examples)
    if not trained:
        return math.nan
    ordered = sorted(examples, key=lambda example: -len(example.input_ids))  # little padding, and memory peaks first
    total = torch.zeros((), dtype=torch.float64)
    with mode(model, training=False):
        for start in range(0, len(ordered), micro_batch_size):
            batch = task.collate(ordered[start : start + micro_batch_size], pad_id)
            total += task.loss_sum(model, batch).double().cpu()
    return float(total) / trained
