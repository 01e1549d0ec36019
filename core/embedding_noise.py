"""NEFTune: noise on the embeddings of a text while it trains (Jain et al. 2023, arXiv 2310.05914, section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def embedding_noise(model: nn.Module, alpha: float) -> Iterator[None]:
    """Inside, and in training mode, add alpha / sqrt(T D) times uniform noise from [-1, 1] to embeddings (B, T, D).

    T is the length of the padded batch, as in the paper's own code. Nothing happens for an alpha of 0.
    """
    if not alpha:
        yield
        return
    source: Any = model
    handle = source.get_input_embeddings().register_forward_hook(
        lambda module, args, output: _noisy(output, alpha) if module.training else output
    )
    try:
        yield
    finally:
        handle.remove()


def _noisy(embedded: Tensor, alpha: float) -> Tensor:
    scale = alpha / (embedded.shape[-2] * embedded.shape[-1]) ** 0.5
    return embedded + torch.empty_like(embedded).uniform_(-scale, scale)
