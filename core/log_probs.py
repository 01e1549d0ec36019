"""How likely a causal model finds each row of a batch, for losses that compare whole answers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from core.loss import Head, hidden_states, trained_positions

CHUNK_ROWS = 512  # of hidden states whose logits are in memory at once


def row_log_probs(model: nn.Module, head: Head | None, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Sum of log p(token | tokens before it) over the trained tokens of each row, (B), in float32 or better.

    input_ids (B, T) on the model's device, padded on the right; labels (B, T), best left on the host, are -100 where
    nothing is trained. The logits are made again in the backward pass, some rows at a time, rather than kept.
    """
    positions, targets = (part.to(input_ids.device) for part in trained_positions(labels))
    if head is None:
        logits = model(input_ids=input_ids, use_cache=False).logits.flatten(0, 1)
        losses = _losses(None, logits.index_select(0, positions), targets)
    else:
        hidden = hidden_states(head.body, input_ids).flatten(0, 1).index_select(0, positions)
        parts = zip(torch.split(hidden, CHUNK_ROWS), torch.split(targets, CHUNK_ROWS), strict=True)
        losses = torch.cat([_again(head, rows, wanted) for rows, wanted in parts])
    rows = positions // input_ids.shape[1]
    return losses.new_zeros(len(input_ids)).index_add(0, rows, -losses)


def _again(head: Head, rows: Tensor, targets: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return _losses(head, rows, targets)
    made: Tensor = checkpoint(_losses, head, rows, targets, use_reentrant=False)
    return made


def _losses(head: Head | None, rows: Tensor, targets: Tensor) -> Tensor:
    logits = rows if head is None else head.logits(rows)
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets, reduction="none")
