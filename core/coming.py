"""Numbers on their way from the device to the host, which need not wait for what the device is given after them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Coming:
    """The numbers of a tensor (N), copied as soon as the device has them."""

    def __init__(self, tensor: Tensor) -> None:
        self._here = tensor.to("cpu", non_blocking=tensor.is_cuda)  # in page-locked memory then
        self._copied: Any = None
        if tensor.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def numbers(self) -> list[float]:
        """Waits until they are here."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[float] = self._here.tolist()
        return numbers
