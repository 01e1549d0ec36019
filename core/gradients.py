"""The gradients of an optimizer step, in whatever memory there is.

On a GPU the longest micro-batch is tried before the first step, forward and backward. Where memory runs out, then or
later, the batches become smaller or layers are computed again in the backward pass; the step starts over, and its
gradients are the same. Where memory only just suffices, torch frees it and asks again all the time, which takes longer
than the computing: then layers give up more as well, which changes no bit.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from core.data.tokenized import lengths_of
from core.errors import OutOfMemoryError
from core.loss import device_of
from core.micro_batches import MicroBatches, drops_at_random
from core.prepared import Prepared
from core.recompute import Recompute
from core.step_graphs import StepGraphs, weights_of
from core.tasks.task import Task

T = TypeVar("T")
FULL_SPEED_TOKENS = {"cpu": 1}  # below this many a pass, a device idles: then layers give something up before that
FULL_SPEED_TOKENS_ELSEWHERE = 1024
FULL_SPEED_TOKENS_A_PROCESSOR = 24  # of a CUDA device: large tiles for each of them, several times over
TIGHT_STEPS = 2  # in a row, after which more is given up
SLACK_BYTES = 2**27  # for what the update needs, and for batches that fall otherwise
MOMENT_BYTES = 8  # AdamW's for a trained parameter, which do not exist yet when the longest batch is tried
GRADIENT_BYTES = 4  # of one, which stays where it is while graphs are replayed
ADAPTER = 10  # times as many weights as trained parameters


@dataclass(frozen=True)
class Summed:
    """What adding up the gradients of a step told."""

    micro_batches: list[list[int]]  # rows of each
    losses: list[Tensor]  # the sum of each
    trained: int  # terms of all losses
    tokens: int  # of the rows
    positions: int  # that the model computed
    notes: tuple[str, ...]  # what was changed on the way, for the log


class Gradients:
    """Adds the gradients of rows to the parameters of a model.

    `start_over` clears what was added and puts the random numbers back.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        examples: Sequence[Any],
        batches: MicroBatches,
        start_over: Callable[[], None],
    ) -> None:
        self.model, self.task, self.examples, self.micro_batches = model, task, examples, batches
        self.start_over = start_over
        self.recompute = Recompute(model)
        self.graphs = StepGraphs(model, task, batches)
        self.graphs.settle = self.recompute.offload.settle
        self.passing: Callable[[], AbstractContextManager[None]] = nullcontext  # what the model runs in
        self.prepared = Prepared(examples, batches, pins=device_of(model).type == "cuda")
        self._draws = drops_at_random(model)
        self._begun: tuple[Any, Summed] | None = None  # rows and step, and what they gave
        self._batch: Any = None  # the one being computed
        self._searched = False  # for memory, in what was computed last
        self._tight_steps = 0

    def of(self, rows: Sequence[int], step: int) -> Summed:
        """Add the gradients of the mean loss over all trained tokens of these rows, in the step after `step` others.

        Raises OutOfMemoryError when they do not fit, row by row and with every layer recomputed.
        """
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == (tuple(rows), step):
            return begun[1]
        notes: list[str] = []
        graphs = self.graphs.in_words()
        summed = self._in_what_room_there_is(lambda: self._add(rows, step, notes), notes)
        if self.graphs.in_words() != graphs:
            summed = replace(summed, notes=(*summed.notes, self.graphs.in_words()))
        self._tight_steps = self._tight_steps + 1 if self._searched else 0
        if self._tight_steps >= TIGHT_STEPS and self.recompute.more():
            self._tight_steps = 0
            return replace(summed, notes=(*summed.notes, f"Memory is tight. {self.recompute.in_words()}"))
        return summed

    def _add(self, rows: Sequence[int], step: int, notes: Sequence[str]) -> Summed:
        divided = self.prepared.of(rows, step)
        losses: list[Tensor] = []
        is_replayed = all(self.graphs.has(batch) for batch in divided.batches)
        before = 0 if is_replayed else searches(self.model)
        with nullcontext() if is_replayed else self._running():
            for self._batch in divided.batches:
                losses.append(self.add(self._batch, divided.trained))
        self._searched = not is_replayed and searches(self.model) > before
        positions = sum(self.graphs.computed(batch) for batch in divided.batches)
        return Summed(divided.parts, losses, divided.trained, divided.tokens, positions, tuple(notes))

    def begin(self, rows: Sequence[int], step: int) -> None:
        """Have the device begin with what `of` will be asked for next, if that is no more than to replay graphs.

        Such a step changes gradients alone, no random numbers and no memory: until `of` it can be forgotten.
        """
        if self.graphs.keeps_gradients and not self._draws:
            divided = self.prepared.of(rows, step)
            if all(self.graphs.has(batch) for batch in divided.batches):
                self._begun = (tuple(rows), step), self._add(rows, step, ())

    @property
    def has_begun(self) -> bool:
        """Whether the device has begun with the next step."""
        return self._begun is not None

    def forget(self) -> None:
        """Clear the gradients of what was begun, if something was."""
        if self._begun is not None:
            self._begun = None
            torch._foreach_zero_([each.grad for each in self.graphs.parameters if each.grad is not None])

    @contextmanager
    def _running(self) -> Iterator[None]:
        with self.passing(), self.recompute.running():
            yield

    @property
    def keeps_buffers(self) -> bool:
        """Whether gradients must be cleared where they are, since a graph adds to them there."""
        return self.graphs.keeps_gradients

    def add(self, batch: Any, trained: int) -> Tensor:
        """Add the gradients of one micro-batch and return the sum of its losses."""
        if self.graphs.takes(batch):
            return self.graphs.run(batch, trained)
        with self.task.computing(self.model, batch):
            loss = self.task.loss_sum(self.model, batch)
            torch.autograd.backward(loss / trained)
        self.recompute.offload.settle()
        return loss.detach()

    def enable_graphs(self, batch_size: int, steps: int, refusal: str) -> None:
        """Let the `steps` to come run as graphs, unless there is a `refusal`, or model or memory stand against it."""
        self.graphs.enable(batch_size, lengths_of(self.examples), steps, refusal)

    def try_longest(self, batch_size: int, trained_parameters: int) -> str:
        """Run the longest micro-batch once, without keeping anything of it; tell what it took, in words.

        Beside it, room is held free for what the optimizer and the graphs of an adapter will need.
        """
        device = device_of(self.model)
        lengths = lengths_of(self.examples)
        ordered = sorted(range(len(lengths)), key=lambda row: -lengths[row])[:batch_size]
        notes: list[str] = []
        of_each = MOMENT_BYTES + (GRADIENT_BYTES if ADAPTER * trained_parameters < weights_of(self.model) else 0)
        reserve = torch.empty(of_each * trained_parameters + SLACK_BYTES, dtype=torch.uint8, device=device)
        torch.cuda.reset_peak_memory_stats(device)
        self._in_what_room_there_is(lambda: self._try(ordered), notes)
        while self._searched and self.recompute.more():
            self._in_what_room_there_is(lambda: self._try(ordered), notes)
        peak, (_, total) = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)
        del reserve
        self.start_over()
        took = f"The longest batch takes {_gib(peak)} of {_gib(total)}."
        return " ".join([*notes, took, self.recompute.in_words()])

    def _try(self, ordered: Sequence[int]) -> None:
        parts = self.micro_batches.divide(self.examples, ordered)
        longest = max(parts, key=lambda part: sum(len(self.examples[row].input_ids) for row in part))
        before = searches(self.model)
        with self._running():
            self._batch = batch = self.micro_batches.batch([self.examples[row] for row in longest])
            with self.task.computing(self.model, batch):
                torch.autograd.backward(self.task.loss_sum(self.model, batch))
        self._searched = searches(self.model) > before

    def beside(self, run: Callable[[], T]) -> T:
        """Run what adds no gradients, as a measurement; where memory is short for it, the graphs give up theirs."""
        try:
            return run()
        except RuntimeError as error:
            if not (is_out_of_memory(error) and self.graphs.give_up()):
                raise
        _release()  # outside of `except`: the error holds on to all that is to be freed
        return run()

    def _in_what_room_there_is(self, run: Callable[[], T], notes: list[str]) -> T:
        while True:
            try:
                return run()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if not self._make_room():
                    raise _does_not_fit(self._batch) from error
            size, again = self.micro_batches.size_in_words, self.recompute.in_words()
            notes[:] = [f"Memory ran out: from here on at most {size} together. {again}"]
            self._free()  # outside of `except`: the error holds on to all that is to be freed

    def _make_room(self) -> bool:
        """Make the next attempt smaller; False when nothing is left to make smaller."""
        longest, full_speed = max(lengths_of(self.examples)), full_speed_tokens(device_of(self.model))
        computed = self._batch.input_ids.numel()
        halve = self.micro_batches.halve
        return (
            self.graphs.give_up()
            or halve(longest, full_speed, computed)
            or self.recompute.more()
            or halve(longest, 1, computed)
        )

    def _free(self) -> None:
        self.graphs.drop()
        self.start_over()
        _release()

    def state_dict(self) -> dict[str, int]:
        """What a resumed run needs to compute its steps alike."""
        return {**self.micro_batches.state_dict(), "recomputed": self.recompute.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The inverse of `state_dict`."""
        self.forget()
        self.micro_batches.load_state_dict(state)
        self.recompute.steps = int(state["recomputed"])


def _release() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def full_speed_tokens(device: torch.device) -> int:
    """How many tokens a pass needs at least, for its device not to idle."""
    if device.type == "cuda":
        return FULL_SPEED_TOKENS_A_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    return FULL_SPEED_TOKENS.get(device.type, FULL_SPEED_TOKENS_ELSEWHERE)


def searches(model: nn.Module) -> int:
    """How often torch had to free what it had cached of a GPU's memory, to find room for a tensor."""
    device = device_of(model)
    stats = torch.cuda.memory_stats_as_nested_dict(device) if device.type == "cuda" else {}  # as memory_stats, sooner
    return int(stats.get("num_alloc_retries", 0))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the host, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _does_not_fit(batch: Any) -> OutOfMemoryError:
    rows, length = batch.input_ids.shape
    return OutOfMemoryError(
        f"{rows} row of {length:,} tokens does not fit into the memory that is free, every layer computed again.",
        f"Set max_length to {length // 2}, choose fewer target modules, a quantised base, or a smaller model.",
    )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
