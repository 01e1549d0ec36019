"""Measuring a model on rows it does not train on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from core.data.batching import collate
from core.data.template import TokenizedExample
from core.loss import Head, device_of, find_head, loss_sum


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model in training or evaluation mode inside, and every module back in its own afterwards."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before.items():
            module.training = was_training


@torch.no_grad()
def evaluate_loss(
    model: nn.Module,
    examples: Sequence[TokenizedExample],
    pad_id: int = 0,
    micro_batch_size: int = 8,
    head: Head | None = None,
) -> float:
    """Mean -log p per trained token over all examples, dropout off; NaN when there is nothing to measure.

    Tokens count the same whatever row they stand in. `head` saves looking for it again (`core.loss.find_head`).
    """
    trained = sum(example.n_trained for example in examples)
    if not trained:
        return math.nan
    head = head or find_head(model)
    device = device_of(model)
    ordered = sorted(examples, key=lambda example: -len(example.input_ids))  # little padding, and memory peaks first
    total = torch.zeros((), dtype=torch.float64)
    with mode(model, training=False):
        for start in range(0, len(ordered), micro_batch_size):
            batch = collate(ordered[start : start + micro_batch_size], pad_id)
            total += loss_sum(model, head, batch.input_ids.to(device), batch.labels).double().cpu()
    return float(total) / trained
