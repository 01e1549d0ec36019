"""Forward and backward pass of a packed batch as one CUDA graph: a small model waits for its launches, not its GPU.

A graph replays the same kernels on the same memory, so batches are filled up to a few static shapes. One is recorded
once it has come a few times, as that takes longer than some passes do; a batch that is a little smaller is filled up to
it, as the GPU would wait longer for its launches. Where the GPU turns out to be busy longer than its launches take, all
that a graph saves is the start of a step: then nothing is filled up, and only what comes again and again with nothing
between is recorded, as a graph keeps its memory from whatever else runs. The first replay is compared with the ordinary
pass of the same batch; whatever stands against a graph, the ordinary pass goes on, and `reason` says why.
"""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from core.data.packing import PackedBatch, Shape, fill_up
from core.loss import device_of
from core.micro_batches import MicroBatches
from core.packed_attention import why_no_varlen_on
from core.pieces import fill_in_gradients
from core.quantize.linear import QuantizedLinear
from core.tasks.task import Task

MOST_WORK = 6e13  # parameters times positions of a pass: above, no host is slower than its GPU, and none is measured
MOST_LAG = 0.25  # of a pass that the GPU goes on after its last launch: above, it did not wait for launches
MOST_SHAPES = 64
SLACK_BYTES = 2**26
LENGTHS = 32  # up to that of a usual batch, that it can be filled up to
LEAST_MULTIPLE = 64
USES = 2  # times that a shape has come before it is recorded: what that costs, a few replays save
MOST_FILLED, MOST_LISTED = 1.2, 1.5  # positions, and trained ones, of a recorded shape that a batch is filled up to
OFTEN = 16  # times in a row that a shape has come before it is recorded although the GPU is busy with it
WARM_UPS = 2  # passes before the first graph, of which one may compile kernels; each later graph has one before it
BUSY = "the GPU is busy longer than the launches take"
SELDOM = "a shape that comes again and again becomes a CUDA graph"
TOLERANCE = 2e-2  # of the first replay against the ordinary pass, in bfloat16 with its unordered sums


@dataclass(frozen=True)
class _Recorded:
    """A graph and the memory it reads and writes."""

    graph: Any
    batch: PackedBatch  # on the device
    scale: Tensor  # 1 / trained tokens of the step
    loss: Tensor  # sum of the losses


class StepGraphs:
    """The graphs of a run, by shape; they add to gradients that stay in place."""

    def __init__(self, model: nn.Module, task: Task, batches: MicroBatches) -> None:
        self.model, self.task, self.batches = model, task, batches
        self.parameters: list[nn.Parameter] = []
        self.settle: Callable[[], None] = lambda: None  # ends a pass: what runs beside it joins it
        self.reason = "graphs are for CUDA devices"
        self._usual = 0  # positions of a batch
        self._busy = math.inf  # positions from which the GPU is busy longer than the launches take
        self.drop()

    def train(self, parameters: list[nn.Parameter]) -> None:
        """Add to the gradients of these parameters from now on."""
        self.drop()
        self.parameters = parameters

    def drop(self) -> None:
        """Forget what was recorded, when memory is short or other parameters train."""
        self._recorded: dict[tuple[int, ...], _Recorded] = {}
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._latest: tuple[int, ...] = ()
        self._in_a_row = 0  # times that the latest shape has come, with no other between
        self._pool: Any = None

    def enable(self, batch_size: int, lengths: Sequence[int], refusal: str) -> None:
        """Record from now on, if the model and the device allow: gives every batch one of a few shapes.

        `lengths` are those of all rows, `batch_size` how many of them make a step.
        """
        self._usual = min(self.batches.tokens, batch_size * sum(lengths) // len(lengths))
        self.reason = refusal or self._why_not()
        if self.reason:
            return
        if weights_of(self.model) * self._usual > MOST_WORK:
            self._busy = 0
            return
        multiple = max(LEAST_MULTIPLE, self._usual // LENGTHS // LEAST_MULTIPLE * LEAST_MULTIPLE)
        self._usual = -(-self._usual // multiple) * multiple  # filled up, as its batches are
        self.batches.shape = Shape(multiple, 4 * multiple, batch_size + 2, max(*lengths, multiple))

    def _why_not(self) -> str:
        device = device_of(self.model)
        if device.type != "cuda":
            return "graphs are for CUDA devices"
        if not self.batches.packed:
            return "only packed rows have static shapes"
        if reason := why_no_varlen_on(self.model):
            return f"its attention is not one kernel: {reason}"
        return ""

    def give_up(self) -> bool:
        """Record no more, and free what was recorded; False when that is nothing."""
        had = bool(self._recorded)
        if had:
            self.reason = self.reason or "memory is short"
            self.drop()
        return had

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients must stay where they are, and be cleared in place."""
        return bool(self._recorded)

    def has(self, batch: Any) -> bool:
        """Whether a batch is only replayed, for which the model need not be made ready."""
        return isinstance(batch, PackedBatch) and self._covering(batch) is not None

    def computed(self, batch: Any) -> int:
        """Positions that a batch is computed with."""
        covering = self._covering(batch) if isinstance(batch, PackedBatch) else None
        return covering[0] if covering else int(batch.input_ids.numel())

    def _covering(self, batch: PackedBatch) -> tuple[int, ...] | None:
        """A batch's own shape if it is recorded, or the smallest recorded one that it is worth filling up to."""
        own, multiple = _shape_of(batch), self.batches.shape.multiple
        if own in self._recorded:
            return own
        near = (each for each in self._recorded if each[0] < self._busy and _is_near(own, each, multiple))
        return min(near, default=None)

    def takes(self, batch: Any) -> bool:
        """Whether a batch runs as a graph."""
        if self.reason or not isinstance(batch, PackedBatch):
            return False
        if self._covering(batch) is not None:
            return True
        shape = _shape_of(batch)
        self._in_a_row = self._in_a_row + 1 if shape == self._latest else 1
        self._latest = shape
        self._seen[shape] += 1
        is_due = self._in_a_row > OFTEN if batch.n_positions >= self._busy else self._seen[shape] > USES
        return is_due and len(self._recorded) < MOST_SHAPES

    def run(self, batch: PackedBatch, trained: int) -> Tensor:
        """Add the gradients of a batch, divided by `trained`, and return the sum of its losses."""
        own, key = _shape_of(batch), self._covering(batch)
        if key is None:
            return self._first(own, batch, trained)
        if key != own:
            batch = fill_up(batch, key[0], key[1], self.batches.pad_id)
        recorded = self._recorded[key]
        _copy_into(recorded.batch, batch)
        recorded.scale.fill_(1.0 / trained)
        recorded.graph.replay()
        return recorded.loss.clone()

    def _first(self, key: tuple[int, ...], batch: PackedBatch, trained: int) -> Tensor:
        """Record a shape; where there is no room for that, run the batch the ordinary way, as all from here on."""
        device = device_of(self.model)
        static = _without_lengths(batch.to(device))
        scale = torch.tensor(1.0 / trained, device=device)
        fill_in_gradients(self.parameters)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        before = [gradient.cpu() for gradient in gradients]  # on the host: the device may have no room for two more
        random = torch.cuda.get_rng_state(device)
        torch.cuda.empty_cache()  # recording runs on streams of its own, which cannot use what others have cached
        recorded = None
        try:
            recorded, loss = self._record(static, scale, gradients, before)
            torch.empty(SLACK_BYTES, dtype=torch.uint8, device=device)  # the update needs some room beside the graphs
        except torch.OutOfMemoryError:
            self.reason = "memory is short"
        else:
            if recorded is not None:
                self._recorded[key] = recorded
            return loss
        recorded = None
        self.drop()  # outside of `except`: the error holds on to all that is to be freed
        gc.collect()
        torch.cuda.empty_cache()
        _put(gradients, before)
        torch.cuda.set_rng_state(random, device)
        return self._pass(static, scale)

    def _record(
        self, static: PackedBatch, scale: Tensor, gradients: list[Tensor], before: list[Tensor]
    ) -> tuple[_Recorded | None, Tensor]:
        """Run a batch the ordinary way, record it, and check that the replay adds the same gradients."""
        device = device_of(self.model)
        random = torch.cuda.get_rng_state(device)
        loss, lag = self._warm_up(static, scale, gradients, before)
        if lag > MOST_LAG and static.n_positions < self._busy:
            self._is_busy_with(static.n_positions)
            return None, loss
        wanted = [gradient.cpu() for gradient in gradients]
        try:
            torch.cuda.set_rng_state(random, device)
            recorded = self._capture(static, scale)
            _put(gradients, before)
            torch.cuda.set_rng_state(random, device)
            recorded.graph.replay()
            if not (_close([recorded.loss], [loss]) and _close(gradients, wanted)):
                self.reason = "a replay did not give the gradients of the ordinary pass"
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.reason = f"it could not be recorded ({(str(error) or 'no reason given').splitlines()[0]})"
        if self.reason:
            _put(gradients, wanted)
            self.drop()
            return None, loss
        return recorded, recorded.loss.clone()

    def _is_busy_with(self, positions: int) -> None:
        """Seldom record batches of so many positions or more; where that is most of them, none has to be filled up."""
        self._busy = positions
        if self._is_seldom:
            self.batches.shape = Shape()

    def _warm_up(
        self, static: PackedBatch, scale: Tensor, gradients: list[Tensor], before: list[Tensor]
    ) -> tuple[Tensor, float]:
        """The ordinary pass, on a stream of its own as recording asks for; the last run's gradients stay.

        Returns its loss, and what share of the last run the GPU went on for after everything was launched.
        """
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        random = torch.cuda.get_rng_state()
        with torch.cuda.stream(stream):
            for _ in range(1 if self._recorded else WARM_UPS):
                _put(gradients, before)
                torch.cuda.set_rng_state(random)
                stream.synchronize()
                started = time.perf_counter()
                loss = self._pass(static, scale)
                launched = time.perf_counter()
                stream.synchronize()
        torch.cuda.current_stream().wait_stream(stream)
        ended = time.perf_counter()
        return loss, (ended - launched) / (ended - started)

    def _capture(self, static: PackedBatch, scale: Tensor) -> _Recorded:
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        kept = [(parameter, parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                for parameter, _ in kept:
                    parameter.grad = None  # else every one of them is added to by a kernel of its own
                loss = self._pass(static, scale)
                made = [(gradient, parameter.grad) for parameter, gradient in kept if parameter.grad is not None]
                torch._foreach_add_([into for into, _ in made], [gradient for _, gradient in made])
        finally:
            for parameter, gradient in kept:
                parameter.grad = gradient
        return _Recorded(graph, static, scale, loss)

    def _pass(self, static: PackedBatch, scale: Tensor) -> Tensor:
        try:
            with self.task.computing(self.model, static):
                loss = self.task.loss_sum(self.model, static)
                torch.autograd.backward(loss * scale)
        finally:
            self.settle()
        return loss.detach()

    @property
    def _is_seldom(self) -> bool:
        """Whether the GPU is busy longer than the launches take with most of what comes."""
        return self._busy <= self._usual and not self._recorded

    def in_words(self) -> str:
        """Whether steps run as graphs, and why not."""
        if self.reason:
            return f"Steps run operation by operation: {self.reason}."
        if self._is_seldom:
            return f"Steps run operation by operation, as {BUSY}; {SELDOM}."
        return "Steps run as CUDA graphs."


def weights_of(model: nn.Module) -> int:
    """Numbers that a token is multiplied by, those of packed layers among them."""
    packed = (layer.in_features * layer.out_features for layer in model.modules() if isinstance(layer, QuantizedLinear))
    return sum(parameter.numel() for parameter in model.parameters()) + sum(packed)


def _shape_of(batch: PackedBatch) -> tuple[int, ...]:
    bounds = batch.layout.bounds
    segments = 0 if bounds is None else len(bounds)
    return batch.n_positions, len(batch.positions), segments, batch.layout.longest, *_one_length(batch)


def _is_near(own: tuple[int, ...], other: tuple[int, ...], multiple: int) -> bool:
    """Whether a batch of one shape can be filled up to another, and is not much smaller; both as `_shape_of` has them.

    Neither may be made for examples of one length, both or none list all positions, and kernels must reckon with an
    example as long as the filling.
    """
    positions, listed, *rest = own
    others, others_listed, *others_rest = other
    if rest != others_rest or len(rest) > 2 or (listed == positions) != (others_listed == others):
        return False
    is_near = positions < others <= MOST_FILLED * positions and others - positions + multiple <= rest[-1]
    return is_near and (listed == positions or listed <= others_listed <= MOST_LISTED * listed)


def _one_length(batch: PackedBatch) -> tuple[int, ...]:
    """Length and number of the examples when all are of one length, which a dense kernel is made for; else empty."""
    lengths = batch.layout.lengths
    return (lengths[0], len(lengths)) if len(set(lengths)) == 1 else ()


def _without_lengths(batch: PackedBatch) -> PackedBatch:
    """A batch whose attention can only go by `bounds`: what depends on host numbers must fail, not be recorded.

    Examples of one length keep it: it is a part of the shape.
    """
    return batch if _one_length(batch) else replace(batch, layout=replace(batch.layout, lengths=()))


def _copy_into(static: PackedBatch, batch: PackedBatch) -> None:
    for name in ("input_ids", "position_ids", "positions", "targets"):
        getattr(static, name).copy_(getattr(batch, name), non_blocking=True)
    if static.layout.bounds is not None and batch.layout.bounds is not None:
        static.layout.bounds.copy_(batch.layout.bounds, non_blocking=True)


def _put(tensors: list[Tensor], values: list[Tensor]) -> None:
    torch._foreach_copy_(tensors, values)


def _close(found: list[Tensor], wanted: list[Tensor]) -> bool:
    pairs = ((one.cpu().float(), other.cpu().float()) for one, other in zip(found, wanted, strict=True))
    differences = torch.stack([(one - other).norm() for one, other in pairs])
    sizes = torch.stack([other.cpu().float().norm() for other in wanted])
    return bool(differences.norm() <= TOLERANCE * sizes.norm())
