"""Forward and backward pass of a packed batch as one CUDA graph: a small model waits for its launches, not its GPU.

A graph replays the same kernels on the same memory, so batches are filled up to a few static shapes (`graph_shapes`).
Where the GPU turns out to be busy longer than its launches take, all that a graph saves is the start of a step: then
nothing is filled up, and only what comes again and again with nothing between is recorded, as a graph keeps its memory
from whatever else runs. The first replay is compared with the ordinary pass of the same batch; whatever stands against
a graph, the ordinary pass goes on, and `reason` says why.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from core.data.packing import PackedBatch, Shape, fill_up
from core.graph_shapes import Key, ShapeCounts, covering, one_length, shape_of, static_shape
from core.loss import device_of
from core.micro_batches import MicroBatches
from core.packed_attention import why_no_varlen_on
from core.pieces import fill_in_gradients
from core.quantize.linear import QuantizedLinear
from core.tasks.task import Task

MOST_WORK = 6e13  # parameters times positions of a pass: above, no host is slower than its GPU, and none is measured
MOST_LAG = 0.25  # of a pass that the GPU goes on after its last launch: above, it did not wait for launches
MOST_GRAPHS = 64
SLACK_BYTES = 2**26
WARM_UPS = 2  # passes before the first graph, of which one may compile kernels; each later graph has one before it
BUSY = "the GPU is busy longer than the launches take"
SELDOM = "a shape that comes again and again becomes a CUDA graph"
SPARE_SHARE = 0.01  # of the device's free memory, that a copy of the gradients may take
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
        self._counts = ShapeCounts(0)
        self.drop()

    def train(self, parameters: list[nn.Parameter]) -> None:
        """Add to the gradients of these parameters from now on."""
        self.drop()
        self.parameters = parameters

    def drop(self) -> None:
        """Forget what was recorded, when memory is short or other parameters train."""
        self._recorded: dict[Key, _Recorded] = {}
        self._counts.forget()
        self._pool: Any = None

    def enable(self, batch_size: int, lengths: Sequence[int], steps: int, refusal: str) -> None:
        """Record from now on, if the model and the device allow: gives every batch one of a few shapes.

        `lengths` are those of all rows, `batch_size` how many of them make a step, of which there are `steps` to come.
        """
        tokens = batch_size * sum(lengths) // len(lengths)
        self._usual = min(self.batches.tokens, tokens)
        self._counts = ShapeCounts(steps * math.ceil(tokens / self.batches.tokens))
        self.reason = refusal or self._why_not()
        if self.reason:
            return
        if weights_of(self.model) * self._usual > MOST_WORK:
            self._busy = 0
            return
        self.batches.shape = shape = static_shape(self._usual, batch_size, lengths)
        self._usual = -(-self._usual // shape.multiple) * shape.multiple  # filled up, as its batches are

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
        larger = self._covering(batch) if isinstance(batch, PackedBatch) else None
        return larger[0] if larger else int(batch.input_ids.numel())

    def _covering(self, batch: PackedBatch) -> Key | None:
        """The recorded shape that a batch is filled up to."""
        return covering(shape_of(batch), self._recorded, self._busy, self.batches.shape.multiple)

    def takes(self, batch: Any) -> bool:
        """Whether a batch runs as a graph."""
        if self.reason or not isinstance(batch, PackedBatch):
            return False
        self._counts.pass_by()
        if self._covering(batch) is not None:
            return True
        is_due = self._counts.is_due(shape_of(batch), batch.n_positions >= self._busy)
        return is_due and len(self._recorded) < MOST_GRAPHS

    def run(self, batch: PackedBatch, trained: int) -> Tensor:
        """Add the gradients of a batch, divided by `trained`, and return the sum of its losses."""
        own, key = shape_of(batch), self._covering(batch)
        if key is None:
            return self._first(own, batch, trained)
        if key != own:
            batch = fill_up(batch, key[0], key[1], self.batches.pad_id)
        recorded = self._recorded[key]
        _copy_into(recorded.batch, batch)
        recorded.scale.fill_(1.0 / trained)
        recorded.graph.replay()
        return recorded.loss.clone()

    def _first(self, key: Key, batch: PackedBatch, trained: int) -> Tensor:
        """Record a shape; where there is no room for that, run the batch the ordinary way, as all from here on."""
        device = device_of(self.model)
        static = _without_lengths(batch.to(device))
        scale = torch.tensor(1.0 / trained, device=device)
        fill_in_gradients(self.parameters)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        random = torch.cuda.get_rng_state(device)
        torch.cuda.empty_cache()  # recording runs on streams of its own, which cannot use what others have cached
        before = _copies(gradients)
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
        torch._foreach_copy_(gradients, before)
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
        wanted = _copies(gradients)
        try:
            torch.cuda.set_rng_state(random, device)
            recorded = self._capture(static, scale)
            torch._foreach_copy_(gradients, before)
            torch.cuda.set_rng_state(random, device)
            recorded.graph.replay()
            if not (_close([recorded.loss], [loss]) and _close(gradients, wanted)):
                self.reason = "a replay did not give the gradients of the ordinary pass"
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.reason = f"it could not be recorded ({(str(error) or 'no reason given').splitlines()[0]})"
        if self.reason:
            torch._foreach_copy_(gradients, wanted)
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
                torch._foreach_copy_(gradients, before)
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


def _without_lengths(batch: PackedBatch) -> PackedBatch:
    """A batch whose attention can only go by `bounds`: what depends on host numbers must fail, not be recorded.

    Examples of one length keep it: it is a part of the shape.
    """
    return batch if one_length(batch) else replace(batch, layout=replace(batch.layout, lengths=()))


def _copy_into(static: PackedBatch, batch: PackedBatch) -> None:
    for name in ("input_ids", "position_ids", "positions", "targets"):
        getattr(static, name).copy_(getattr(batch, name), non_blocking=True)
    if static.layout.bounds is not None and batch.layout.bounds is not None:
        static.layout.bounds.copy_(batch.layout.bounds, non_blocking=True)


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    """Copies of tensors of a device: on the host, unless they are nothing beside what the device has free."""
    free = torch.cuda.mem_get_info(tensors[0].device)[0]
    is_little = sum(tensor.nbytes for tensor in tensors) <= SPARE_SHARE * free
    return [tensor.clone() if is_little else tensor.cpu() for tensor in tensors]


def _close(found: list[Tensor], wanted: list[Tensor]) -> bool:
    """Whether tensors are nearly the same as others, compared where those are, one by one, as they may be large."""
    apart, sizes = [], []
    for one, other in zip(found, wanted, strict=True):
        wide = other.float()
        apart.append((one.to(wide.device).float() - wide).norm())
        sizes.append(wide.norm())
    return bool(torch.stack(apart).norm() <= TOLERANCE * torch.stack(sizes).norm())
