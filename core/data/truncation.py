"""Cutting examples to a length. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.errors import DatasetError

if TYPE_CHECKING:
    from core.data.tokenized import TokenTable

PERCENTILE = 0.99
MULTIPLE = 64  # lengths are rounded up to this, which suits the hardware


def choose_max_length(lengths: Sequence[int], limit: int = 0) -> int:
    """The 99th percentile of the lengths rounded up to 64, and at most `limit` (the model's context; 0 is no limit)."""
    ranked = sorted(lengths)
    percentile = ranked[math.ceil(PERCENTILE * len(ranked)) - 1]
    rounded = -(-percentile // MULTIPLE) * MULTIPLE
    return min(rounded, limit) if limit else rounded


def truncate(examples: TokenTable, max_length: int) -> tuple[TokenTable, list[int]]:
    """Cut the right end of what is longer than `max_length` tokens; 0 cuts nothing.

    Returns the examples that still train at least one token, and the row numbers of those that do not (their
    prompt alone is too long). Raises DatasetError when no example is left.
    """
    cut = examples.cut(max_length)
    is_trained = cut.trained > 0
    if examples and not is_trained.any():
        raise DatasetError(
            f"No row has anything left to train within {max_length:,} tokens: the prompts alone are longer.",
            "Raise the maximum length, or shorten the prompts.",
        )
    lost: list[int] = cut.rows[~is_trained].tolist()
    return cut.pick(is_trained.nonzero()[0]), lost
