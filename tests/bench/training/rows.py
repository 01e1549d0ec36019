"""The rows that every side trains on: random tokens of fixed or of ragged lengths, seeded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MEDIAN_TOKENS, SPREAD = 200.0, 0.8  # of the log-normal lengths of instruction data
SHORTEST, LONGEST = 16, 2048


@dataclass(frozen=True)
class Row:
    """Token ids, of which the first `prompt` are not trained."""

    ids: tuple[int, ...]
    prompt: int

    @property
    def labels(self) -> list[int]:
        """The ids where they are trained, -100 elsewhere."""
        return [-100] * self.prompt + list(self.ids[self.prompt :])


def dense_rows(count: int, length: int, vocabulary: int) -> list[Row]:
    """Rows of one length, trained from the second token on."""
    draw = np.random.default_rng(0)
    return [Row(tuple(draw.integers(3, vocabulary, length).tolist()), 1) for _ in range(count)]


def ragged_rows(count: int, vocabulary: int, longest: int = LONGEST, seed: int = 1) -> list[Row]:
    """Rows of log-normal lengths, half of each prompt."""
    draw = np.random.default_rng(seed)
    lengths = np.exp(np.log(MEDIAN_TOKENS) + SPREAD * draw.standard_normal(count)).astype(int).clip(SHORTEST, longest)
    return [Row(tuple(draw.integers(3, vocabulary, length).tolist()), int(length) // 2) for length in lengths]


def padded(rows: list[Row], device: str) -> dict[str, Any]:
    """One batch padded on the right to its longest row, as transformers' models take it."""
    import torch

    longest = max(len(row.ids) for row in rows)
    ids, labels, mask = (torch.full((len(rows), longest), fill) for fill in (0, -100, 0))
    for index, row in enumerate(rows):
        size = len(row.ids)
        ids[index, :size], labels[index, :size] = torch.tensor(row.ids), torch.tensor(row.labels)
        mask[index, :size] = 1
    batch = {"input_ids": ids.to(device), "labels": labels.to(device)}
    return batch if bool(mask.all()) else batch | {"attention_mask": mask.to(device)}
