"""What layers keep for the backward pass, waiting in the host's memory until then.

Rhu et al. 2016, "vDNN", and Ren et al. 2021, "ZeRO-Offload". While a layer computes, what the one before keeps leaves
the device beside it, and backward it comes back beside the layer behind, both on a stream of their own. Copies change
no bit. A layer that is computed again keeps its input alone (`keeping_input`), another one everything its backward pass
reads (`keeping_all`).

Memory of the device is taken and freed in the order of the computing stream, which waits for a copy before it lets go
of what is copied. `record_stream` would free it as late as the device gets there, far behind the host that allocates,
and the memory would not become less. Places in the host's memory are the same in every pass, and what a pass copies is
ordered before what follows it: so it can be recorded as a graph (`core.step_graphs`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from core.host_memory import Arena

DEVICES = ("cuda",)  # whose memory is not the host's
SMALLEST = 8  # parts of a layer's input: smaller tensors stay


class _Memory:
    """The memory of a tensor and its views: on the device (`here`), in the host's (`there`), or in both."""

    def __init__(self, tensor: Tensor) -> None:
        self.here: Tensor | None = _bytes_of(tensor)
        self.there: Tensor | None = None
        self.device = tensor.device
        self.copied: Any = None  # the event after which the last copy between both is done

    def wait(self) -> None:
        """Let the device compute on only when the copy is done."""
        if self.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(self.copied)

    def leave(self) -> None:
        """Free it on the device, once it is in the host's memory."""
        if self.there is not None:
            self.wait()
            self.here = None


@dataclass
class _Layer:
    """What one layer keeps."""

    before: weakref.ref[_Layer] | None  # weak: where a layer before needs no gradient, nobody will ask for it
    memories: dict[int, _Memory] = field(default_factory=dict)  # by their addresses


@dataclass(frozen=True)
class _View:
    """A tensor that was kept."""

    layer: _Layer
    memory: _Memory
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class Offload:
    """Moves what layers keep, one layer leaving and one coming at a time; all of a model's layers tell it."""

    def __init__(self) -> None:
        self.late = 0  # layers of which something came only when it was asked for, with nothing to hide behind
        self._is_on = self._is_backward = False
        self._stream: Any = None
        self._has_copied = False  # in this pass
        self._arena = Arena()
        self._forget()

    def _forget(self) -> None:
        self._last: weakref.ref[_Layer] | None = None
        self._leaving: _Layer | None = None
        self._used: _Layer | None = None  # by the backward pass now
        self._coming: _Layer | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, memory can move; forward and backward pass lie in it."""
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False
            self.settle()  # after an error, copies may still read or write what is freed now

    def keeping_input(self, hidden: Tensor, moves: bool = True) -> AbstractContextManager[Any]:
        """Around `checkpoint` of a layer with the input `hidden` (B, T, D): it leaves the device if it `moves`.

        A layer whose input stays has that of the layer before fetched all the same.
        """
        address = hidden.data_ptr()  # what else is passed by position is shared by all layers
        return self._keeping(lambda tensor: tensor.data_ptr() == address, moves)

    def keeping_all(self, hidden: Tensor) -> AbstractContextManager[Any]:
        """Around a layer with the input `hidden` (B, T, D): all that it keeps and that is of such a size leaves."""
        return self._keeping(partial(_is_of_size, hidden.nbytes, hidden.device), moves=True)

    def _keeping(self, chooses: Callable[[Tensor], bool], moves: bool) -> AbstractContextManager[Any]:
        if not self._is_on:
            return nullcontext()
        return saved_tensors_hooks(partial(self._pack, _Layer(None), chooses, moves), self._unpack)

    def _pack(self, layer: _Layer, chooses: Callable[[Tensor], bool], moves: bool, tensor: Tensor) -> _View | Tensor:
        if not chooses(tensor):
            return tensor
        if not layer.memories:
            self._begin(layer)
        address = tensor.untyped_storage().data_ptr()
        if address not in layer.memories:
            memory = layer.memories[address] = _Memory(tensor.detach())
            if moves:
                self._send(memory)
        offset = int(tensor.storage_offset())
        return _View(layer, layer.memories[address], tensor.dtype, tensor.shape, tensor.stride(), offset)

    def _begin(self, layer: _Layer) -> None:
        """A layer keeps its first tensor: what the one before keeps has left while that computed."""
        if self._is_backward:  # the pass before this one
            self.settle()
        for memory in self._leaving.memories.values() if self._leaving is not None else ():
            memory.leave()
        layer.before, self._last, self._leaving = self._last, weakref.ref(layer), layer

    def _unpack(self, kept: _View | Tensor) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if kept.layer is not self._used:
            self._turn_to(kept.layer)
        here = kept.memory.here
        assert here is not None  # as of all memories of the layer in use
        return here.view(kept.dtype).as_strided(kept.size, kept.stride, kept.offset)

    def _turn_to(self, layer: _Layer) -> None:
        """The backward pass has come to a layer: the one behind is done with, the one before begins to come."""
        self._is_backward = True
        for memory in self._used.memories.values() if self._used is not None else ():
            memory.leave()
        self._used = layer
        self._leaving, self._coming = (None if each is layer else each for each in (self._leaving, self._coming))
        self.late += self._fetch(layer)
        for memory in layer.memories.values():
            memory.wait()
        if (before := layer.before() if layer.before is not None else None) is not None:
            if self._coming is not None:  # when nobody took it, it must not be freed while it comes
                for memory in self._coming.memories.values():
                    memory.wait()
            self._coming = before
            self._fetch(before)

    def _send(self, memory: _Memory) -> None:
        here = memory.here
        assert here is not None
        memory.there = self._arena.take(here.nbytes, here.is_cuda)
        if memory.there is not None:  # else it stays
            memory.copied = self._copy(memory.there, here)

    def _fetch(self, layer: _Layer) -> bool:
        """Begin to bring a layer's memories back; whether any was away."""
        away = [memory for memory in layer.memories.values() if memory.here is None]
        for memory in away:
            assert memory.there is not None  # nothing leaves the device before it has a place there
            memory.here = torch.empty_like(memory.there, device=memory.device)
            memory.copied = self._copy(memory.here, memory.there)
        return bool(away)

    def settle(self) -> None:
        """A pass is over: what the device does from now on waits for its copies."""
        has_copied, self._has_copied, self._is_backward = self._has_copied, False, False
        self._forget()
        self._arena.reset()
        if has_copied:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def _copy(self, into: Tensor, source: Tensor) -> Any:
        """Copy beside what the device computes from now on; the event after which it is done."""
        if not (into.is_cuda or source.is_cuda):
            into.copy_(source)
            return None
        device = into.device if into.is_cuda else source.device
        self._has_copied = True
        self._stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            into.copy_(source, non_blocking=True)
        return self._stream.record_event()


def _bytes_of(tensor: Tensor) -> Tensor:
    """All of a tensor's memory."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _is_of_size(input_bytes: int, device: torch.device, tensor: Tensor) -> bool:
    """Whether a tensor that is kept is the layer's own, neither a parameter nor a part of what all layers use."""
    is_own = tensor.device == device and not isinstance(tensor, nn.Parameter)
    return is_own and tensor.nbytes * SMALLEST >= input_bytes >= tensor.untyped_storage().nbytes() / SMALLEST
