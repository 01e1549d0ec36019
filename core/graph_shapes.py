"""Which shapes of packed batches become CUDA graphs, and which batches are filled up to them.

To record a graph takes as long as some passes do, so it is done for what is likely to come a few times more. A batch
that is a little smaller is filled up to a recorded shape, as the GPU would wait longer for the launches of a pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from core.data.packing import PackedBatch, Shape

Key = tuple[int, ...]  # of a shape: all that a graph of it is made for
LENGTHS = 32  # up to that of a usual batch, that it can be filled up to
LEAST_MULTIPLE = 64
LIKELY = 2  # times that a shape must be expected to come in the rest of the run: as many save what recording costs
OFTEN = 16  # times in a row that a shape has come before it is recorded although the GPU is busy with it
MOST_FILLED, MOST_LISTED = 1.2, 1.5  # positions, and trained ones, of a recorded shape that a batch is filled up to


class ShapeCounts:
    """How often each shape has come in a run of so many batches, and which will come often enough to be recorded."""

    def __init__(self, batches: int) -> None:
        self.left = batches
        self.forget()

    def forget(self) -> None:
        """Count anew."""
        self.come = 0
        self._seen: Counter[Key] = Counter()
        self._latest: Key = ()
        self._in_a_row = 0  # times that the latest shape has come, with no other between

    def pass_by(self) -> None:
        """Count a batch, of whatever shape."""
        self.come, self.left = self.come + 1, self.left - 1

    def is_due(self, shape: Key, is_busy: bool) -> bool:
        """Count the shape of one that no graph covers: is it to be recorded now? `is_busy`: the GPU is, with it."""
        before = self._seen[shape]
        self._seen[shape] += 1
        self._in_a_row = self._in_a_row + 1 if shape == self._latest else 1
        self._latest = shape
        return self._in_a_row > OFTEN if is_busy else before > 0 and before * self.left >= LIKELY * self.come


def static_shape(usual: int, batch_size: int, lengths: Sequence[int]) -> Shape:
    """What packed rows of `batch_size` examples of these lengths, of `usual` positions together, are filled up to."""
    multiple = max(LEAST_MULTIPLE, usual // LENGTHS // LEAST_MULTIPLE * LEAST_MULTIPLE)
    return Shape(multiple, 4 * multiple, batch_size + 2, max(*lengths, multiple))


def shape_of(batch: PackedBatch) -> Key:
    """Positions, listed ones, examples, the bound on their length; and that and their number where all have one."""
    bounds = batch.layout.bounds
    segments = 0 if bounds is None else len(bounds)
    return batch.n_positions, len(batch.positions), segments, batch.layout.longest, *one_length(batch)


def one_length(batch: PackedBatch) -> Key:
    """Length and number of the examples when all are of one length, which a dense kernel is made for; else empty."""
    lengths = batch.layout.lengths
    return (lengths[0], len(lengths)) if len(set(lengths)) == 1 else ()


def covering(own: Key, recorded: Iterable[Key], most: float, multiple: int) -> Key | None:
    """A shape itself if it is recorded, or the smallest recorded one, of fewer than `most` positions, to fill up to."""
    if own in (known := set(recorded)):
        return own
    return min((each for each in known if each[0] < most and _is_near(own, each, multiple)), default=None)


def _is_near(own: Key, other: Key, multiple: int) -> bool:
    """Whether a batch of one shape can be filled up to another, and is not much smaller.

    Neither may be made for examples of one length, both or none list all positions, and kernels must reckon with an
    example as long as the filling.
    """
    positions, listed, *rest = own
    others, others_listed, *others_rest = other
    if rest != others_rest or len(rest) > 2 or (listed == positions) != (others_listed == others):
        return False
    is_near = positions < others <= MOST_FILLED * positions and others - positions + multiple <= rest[-1]
    return is_near and (listed == positions or listed <= others_listed <= MOST_LISTED * listed)
