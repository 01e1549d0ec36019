"""Inputs of layers that wait in the host's memory between the forward pass and the backward pass.

Rhu et al. 2016, "vDNN", and Ren et al. 2021, "ZeRO-Offload": a layer that is computed again needs its input alone, and
only when its turn comes. While a layer computes, its input leaves the device beside it, and backward the input of the
layer before comes back beside it, both on a stream of their own. Copies change no bit.

Tensors on the device are made and freed in the order of the computing stream, which waits for a copy before it lets go
of what is copied. `record_stream` would free them as late as the device gets there, far behind the host that allocates,
and the memory would not become less. Pinned buffers are torch's, which keeps them for the next pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from core.host_memory import available_bytes

DEVICES = ("cuda",)  # whose memory is not the host's
HOST_SHARE = 0.5  # of the host's available memory that inputs may take at once


class _Kept:
    """An input, on the device (`here`), in the host's memory (`there`), or in both."""

    def __init__(self, tensor: Tensor, before: weakref.ref[_Kept] | None) -> None:
        self.here: Tensor | None = tensor
        self.there: Tensor | None = None
        self.device = tensor.device
        self.copied: Any = None  # the event after which the last copy between both is done
        self.before = before  # weak: where a layer before needs no gradient, nobody will ask for its input

    def wait(self) -> None:
        """Let the device compute on only when the copy is done."""
        if self.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(self.copied)


class Offload:
    """Moves inputs of checkpointed layers, one leaving and one coming at a time; all of a model's layers tell it."""

    def __init__(self) -> None:
        self.largest = 0  # bytes of an input so far
        self.late = 0  # inputs that came only when their layer asked, with nothing to hide behind
        self._is_on = self._is_backward = False
        self._stream: Any = None
        self._forget()

    def _forget(self) -> None:
        self._last: weakref.ref[_Kept] | None = None
        self._leaving: _Kept | None = None
        self._coming: _Kept | None = None

    def has_room(self, count: int) -> bool:
        """Whether the host's memory takes `count` more inputs; torch rounds pinned buffers up to powers of two."""
        return count * (1 << max(0, self.largest - 1).bit_length()) <= HOST_SHARE * available_bytes()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, inputs can move; forward and backward pass lie in it."""
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False
            self._settle()  # after an error, copies may still read or write what is freed now
            self._forget()

    def keeping(self, hidden: Tensor, moves: bool) -> AbstractContextManager[Any]:
        """Around `checkpoint` of a layer with the input `hidden` (B, T, D): it leaves the device if it `moves`.

        A layer whose input stays has the one of the layer before fetched all the same.
        """
        self.largest = max(self.largest, hidden.nbytes)
        if not self._is_on:
            return nullcontext()
        return saved_tensors_hooks(partial(self._pack, hidden.data_ptr(), moves), self._unpack)

    def _pack(self, address: int, moves: bool, tensor: Tensor) -> _Kept | Tensor:
        if tensor.data_ptr() != address:  # what else is passed by position is shared by all layers
            return tensor
        if self._is_backward:  # the pass before this one: else its buffers are in use yet, and others would be pinned
            self._settle()
        if self._leaving is not None:  # it did so while the last layer computed
            self._leaving.wait()
            self._leaving.here, self._leaving = None, None
        hidden = tensor.detach()
        kept = _Kept(hidden, self._last)
        self._last = weakref.ref(kept)
        if moves and hidden.is_contiguous():
            self._send(kept, hidden)
        return kept

    def _unpack(self, kept: _Kept | Tensor) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        self._is_backward = True
        here = kept.here
        if here is None:
            self.late += 1
            here = self._fetch(kept)
        kept.wait()
        if kept.there is not None:
            kept.here = None  # freed as soon as the layer is done with it
        self._leaving, self._coming = (None if each is kept else each for each in (self._leaving, self._coming))
        before = kept.before() if kept.before is not None else None
        if before is not None and before.here is None:
            self._fetch(before)
        return here

    def _send(self, kept: _Kept, hidden: Tensor) -> None:
        try:
            kept.there = torch.empty(hidden.shape, dtype=hidden.dtype, device="cpu", pin_memory=hidden.is_cuda)
        except RuntimeError:  # the host gives no more, as it may after another process took it: the input stays
            return
        kept.copied, self._leaving = self._copy(kept.there, hidden), kept

    def _fetch(self, kept: _Kept) -> Tensor:
        if self._coming is not None:  # when nobody took it, it must not be freed while it comes
            self._coming.wait()
        there = kept.there
        assert there is not None  # an input leaves the device only once it has a place there
        kept.here = torch.empty_like(there, device=kept.device)
        kept.copied, self._coming = self._copy(kept.here, there), kept
        return kept.here

    def _settle(self) -> None:
        """Wait here until all copies are done, when layers that compute are still queued behind them."""
        self._is_backward = False
        if self._stream is not None:
            self._stream.synchronize()

    def _copy(self, into: Tensor, source: Tensor) -> Any:
        """Copy beside what the device computes from now on; the event after which it is done."""
        if not (into.is_cuda or source.is_cuda):
            into.copy_(source)
            return None
        device = into.device if into.is_cuda else source.device
        self._stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            into.copy_(source, non_blocking=True)
        return self._stream.record_event()
