"""Examples behind each other in one long row, so that nothing is computed for padding.

What makes this exact: positions restart with every example, no example sees another (`core/packed_attention.py`), and
the first token of an example is never predicted from the last one of the example before it. Examples stay whole.
A beginning that all of them share, such as a system prompt, may stand in the row once, for all of them to look back
at: what a token becomes depends on the tokens before it only, so that computing it again gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from core.data.tokenized import TokenizedExample

IGNORED = -100  # the label that torch's cross entropy leaves out
FEW = 256  # where fewer than one in so many positions is not trained, picking the others takes longer than them all


@dataclass(frozen=True)
class Layout:
    """Where the examples of a packed row of T positions lie, known on the host before the step begins."""

    lengths: tuple[int, ...]  # positions of each example, in order; with `prefix` they sum to T
    prefix: int = 0  # positions at the start of the row that every example looks back at
    bounds: Tensor | None = None  # (N + 1) int32 on the device: where examples begin, and T; only without a prefix
    longest: int = 0  # at least the longest of `lengths`; the same in every batch of a run, so that shapes are static

    def changed(self, change: Callable[[Tensor], Tensor]) -> Layout:
        """The same layout with its tensor elsewhere."""
        return self if self.bounds is None else replace(self, bounds=change(self.bounds))


@dataclass(frozen=True)
class PackedBatch:
    """Examples in one row; all tensors are int64, on the host until `to`."""

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T), from 0 in every example
    positions: Tensor  # (N) indices into the row whose next token is trained; all T in order where few are not
    targets: Tensor  # (N) those next tokens; IGNORED for others, and where the list was filled up to a static length
    layout: Layout
    n_trained: int  # terms of the loss
    n_tokens: int  # of all examples, without filling; a shared prefix counts for each

    @property
    def n_positions(self) -> int:
        """What the model computes, filling included."""
        return self.input_ids.numel()

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device; copies from pinned memory do not wait."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> PackedBatch:
        """The same batch in page-locked memory, from which a CUDA device copies by itself."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> PackedBatch:
        return replace(
            self,
            input_ids=change(self.input_ids),
            position_ids=change(self.position_ids),
            positions=change(self.positions),
            targets=change(self.targets),
            layout=self.layout.changed(change),
        )


@dataclass(frozen=True)
class Shape:
    """What is static about packed rows; each 1 leaves its size to the batch."""

    multiple: int = 1  # positions of a row are filled up to a multiple of this
    trained_multiple: int = 1  # and trained positions to a multiple of this
    segments_multiple: int = 1  # and the number of examples, with empty ones
    longest: int = 0  # bound on the length of an example


def pack(examples: Sequence[TokenizedExample], pad_id: int, shape: Shape | None = None, prefix: int = 0) -> PackedBatch:
    """Put examples into one row, the first `prefix` tokens of all of them (`shared_prefix`) only once.

    Filling at the end is an example of its own, of which nothing is trained.
    """
    shape = shape or Shape()
    arrays = [example.arrays for example in examples]
    lengths = [len(ids) - prefix for ids, _ in arrays]
    rows = [arrays[0][0][:prefix], *(ids[prefix:] for ids, _ in arrays)]
    trained = np.flatnonzero(np.concatenate([np.zeros(prefix, bool), *(mask[prefix:] for _, mask in arrays)]))
    if filling := -(prefix + sum(lengths)) % shape.multiple:
        rows.append(np.full(filling, pad_id, dtype=np.int32))
        lengths.append(filling)
    ids = np.concatenate(rows).astype(np.int64)
    first = [prefix] * len(examples) + [0] * (len(lengths) - len(examples))  # the position each begins with
    ends = np.cumsum(lengths)
    places = np.arange(ends[-1]) - np.repeat(ends - lengths - first, lengths)
    positions, targets = trained - 1, ids[trained]  # never of an example's first own token
    spare = -len(trained) % shape.trained_multiple
    if len(ids) - len(trained) < max(spare + 1, len(ids) / FEW):
        positions, spare = np.arange(len(ids)), 0
        targets = np.append(np.where(np.isin(positions[1:], trained), ids[1:], IGNORED), IGNORED)
    return PackedBatch(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(prefix), places]))[None],
        positions=torch.from_numpy(np.pad(positions, (0, spare))),
        targets=torch.from_numpy(np.pad(targets, (0, spare), constant_values=IGNORED)),
        layout=_layout(lengths, prefix, shape),
        n_trained=len(trained),
        n_tokens=sum(len(ids) for ids, _ in arrays),
    )


def fill_up(batch: PackedBatch, n_positions: int, n_listed: int, pad_id: int) -> PackedBatch:
    """The same batch on the host in a larger shape: one more example behind, of which nothing is trained.

    `n_listed` is the length of its `positions`. Its `bounds` must have an empty example at the end to spare.
    """
    old, filling = batch.n_positions, n_positions - batch.n_positions
    spare = n_listed - len(batch.positions)
    is_all = len(batch.positions) == old
    bounds = batch.layout.bounds
    assert bounds is not None and is_all == (n_listed == n_positions)
    begins = int(torch.searchsorted(bounds, old))  # the filling, in the place of the first empty example
    assert begins + 1 < len(bounds)
    bounds = bounds.clone()
    bounds[begins + 1 :] = n_positions
    layout = replace(batch.layout, lengths=(*batch.layout.lengths, filling), bounds=bounds)
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, filling), value=pad_id),
        position_ids=torch.cat([batch.position_ids, torch.arange(filling)[None]], 1),
        positions=torch.arange(n_positions) if is_all else F.pad(batch.positions, (0, spare)),
        targets=F.pad(batch.targets, (0, spare), value=IGNORED),
        layout=layout,
    )


def _layout(lengths: Sequence[int], prefix: int, shape: Shape) -> Layout:
    longest = max(shape.longest, *lengths)
    if prefix:
        return Layout(tuple(lengths), prefix, None, longest)
    ends = np.cumsum([0, *lengths])
    ends = np.pad(ends, (0, -len(lengths) % shape.segments_multiple), mode="edge")  # empty examples at the end
    return Layout(tuple(lengths), 0, torch.from_numpy(ends.astype(np.int32)), longest)


def shared_prefix(examples: Sequence[TokenizedExample]) -> int:
    """How many first tokens all examples share, of which none is trained or predicts a trained token; 0 for one."""
    if len(examples) < 2:
        return 0
    first, *others = examples
    limit = min(example.loss_mask.index(True) - 1 if any(example.loss_mask) else len(example.input_ids) - 1
                for example in examples)  # fmt: skip
    shared = first.input_ids[: max(0, limit)]
    for example in others:
        own = example.input_ids
        if own[: len(shared)] != shared:
            shared = shared[: next(at for at, token in enumerate(shared) if own[at] != token)]
    return len(shared)


def divide(rows: Sequence[int], lengths: Sequence[int] | Mapping[int, int], budget: int) -> list[list[int]]:
    """Rows of one step in as few micro-batches of at most `budget` positions as best-fit-decreasing packing needs.

    Of those, the packing whose longest micro-batch is shortest, so that all have nearly one length. A row longer than
    the budget gets a micro-batch of its own. Rows of a micro-batch are ordered by length.
    """
    ordered = sorted(rows, key=lambda row: (-lengths[row], row))
    sizes = [lengths[row] for row in ordered]
    budget = max(budget, sizes[0])
    best = _best_fit(sizes, budget)
    low, high = max(sizes[0], -(-sum(sizes) // len(best))), budget
    while low < high:
        middle = (low + high) // 2
        tried = _best_fit(sizes, middle)
        if len(tried) <= len(best):
            best, high = tried, middle
        else:
            low = middle + 1
    return [[ordered[item] for item in items] for items in best]


def _best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of descending sizes by bin: each goes where it leaves the least room (Johnson 1973)."""
    bins: list[list[int]] = []
    room: list[int] = []
    for item, size in enumerate(sizes):
        fitting = [(left, index) for index, left in enumerate(room) if left >= size]
        if fitting:
            _, index = min(fitting)
            bins[index].append(item)
            room[index] -= size
        else:
            bins.append([item])
            room.append(capacity - size)
    return bins
