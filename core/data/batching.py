"""Which rows train together, and the padded tensors they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from core.data.tokenized import TokenizedExample

IGNORED = -100  # the label that torch's cross entropy leaves out
WINDOW_STEPS = 8  # rows are sorted by length within this many optimizer steps


@dataclass
class Batch:
    """Examples padded on the right to one length; all three tensors are int64 of shape (B, T)."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor  # IGNORED where not trained; not shifted, so labels[:, t] belongs to the logits at t - 1
    n_trained: int  # terms of the loss
    n_tokens: int  # without padding

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        tensors = (self.input_ids, self.attention_mask, self.labels)
        input_ids, attention_mask, labels = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return Batch(input_ids, attention_mask, labels, self.n_trained, self.n_tokens)


def collate(examples: Sequence[TokenizedExample], pad_id: int) -> Batch:
    """Pad on the right, by length.

    Padding is never found by comparing ids: where pad and end token are the same, that would hide the end
    token from the loss, and the model would never learn to stop.
    """
    shape = len(examples), max(len(example.input_ids) for example in examples)
    input_ids = torch.full(shape, pad_id, dtype=torch.long)  # (B, T)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    for row, example in enumerate(examples):
        ids = torch.tensor(example.input_ids, dtype=torch.long)
        mask = torch.tensor(example.loss_mask, dtype=torch.bool)
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
        labels[row, : len(ids)][mask] = ids[mask]
    n_tokens = sum(len(example.input_ids) for example in examples)
    return Batch(input_ids, attention_mask, labels, sum(example.n_trained for example in examples), n_tokens)


class Sampler:
    """An endless run of optimizer steps, each a list of row indices.

    Every epoch is a fresh permutation drawn from (seed, epoch) that holds each row exactly once. Within windows of
    `WINDOW_STEPS` steps the rows are sorted by length, which keeps padding small; the steps of a window are shuffled.
    With a `difficulty` for each row, the first epoch goes from the easiest rows to the hardest instead (a curriculum,
    Bengio et al. 2009). Otherwise the rows left over form the epoch's last, smaller step; they are a random draw, not
    the longest or the shortest.

    `state_dict` is all there is to save: a sampler with that state goes on with exactly the same steps.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, difficulty: Sequence[float] | None = None
    ) -> None:
        if not lengths or batch_size < 1:
            raise ValueError("a sampler needs rows, and a batch size of at least 1")
        self.lengths = tuple(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.difficulty = difficulty
        self.epoch = 0
        self.position = 0  # of the next step in this epoch
        self._planned_epoch = -1
        self._plan: list[list[int]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see every row once."""
        return -(-len(self.lengths) // self.batch_size)

    def next_rows(self) -> list[int]:
        """The rows of the next step, the longest first."""
        rows = self.peek_rows()
        self.position += 1
        if self.position == self.steps_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        return rows

    def peek_rows(self) -> list[int]:
        """What `next_rows` will give."""
        if self._planned_epoch != self.epoch:
            self._plan, self._planned_epoch = self._epoch_steps(self.epoch), self.epoch
        return sorted(self._plan[self.position], key=lambda index: (-self.lengths[index], index))

    def state_dict(self) -> dict[str, int]:
        """Where the sampler stands, ready for JSON."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to where `state_dict` was taken."""
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position < self.steps_per_epoch:
            raise ValueError(f"there is no step {position} in an epoch of {self.steps_per_epoch} steps")
        self.epoch, self.position = epoch, position

    def _epoch_steps(self, epoch: int) -> list[list[int]]:
        draw = np.random.default_rng([self.seed, epoch])
        order = draw.permutation(len(self.lengths)).tolist()
        if self.difficulty is not None and epoch == 0:
            order.sort(key=self.difficulty.__getitem__)  # rows that are equally hard stay in the order drawn
            return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        full = len(order) - len(order) % self.batch_size
        steps: list[list[int]] = []
        size = WINDOW_STEPS * self.batch_size
        for start in range(0, full, size):
            window = sorted(order[start : min(start + size, full)], key=self.lengths.__getitem__)
            grouped = [window[at : at + self.batch_size] for at in range(0, len(window), self.batch_size)]
            steps += [grouped[index] for index in draw.permutation(len(grouped))]
        return [*steps, order[full:]] if full < len(order) else steps
