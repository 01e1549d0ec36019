"""Measuring a model on rows it does not train on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from core.data.tokenized import TokenizedExample
from core.loss import Head, find_head
from core.prompt import virtual_ids
from core.tasks.completion import Completion
from core.tasks.task import mean_loss


def evaluate_loss(
    model: nn.Module,
    examples: Sequence[TokenizedExample],
    pad_id: int = 0,
    micro_batch_size: int = 8,
    head: Head | None = None,
) -> float:
    """Mean -log p per trained token over all examples, dropout off; NaN when there is nothing to measure.

    Tokens count the same whatever row they stand in. The trained positions of the active adapter, if it has some
    (`core.prompt`), are put before every example that has none yet. `head` saves looking for it again
    (`core.loss.find_head`).
    """
    before = virtual_ids(model)
    ready = [example if min(example.input_ids, default=0) < 0 else example.after(before) for example in examples]
    return mean_loss(Completion(head or find_head(model)), model, ready, pad_id, micro_batch_size)
