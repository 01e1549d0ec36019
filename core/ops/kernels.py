"""Where Triton kernels stand in for plain torch operations: on CUDA devices, when Triton is installed.

A kernel is never needed for a right result: it computes what the torch operations beside it compute, in one pass.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from shutil import which
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from core.ops.lora_gate import Around

logger = logging.getLogger(__name__)

WIDEST = 128  # rank that the kernels with small products hold
HALVES = (torch.bfloat16, torch.float16)  # for which there are fast products of small tiles
ALIGNED = 8  # 16-bit numbers: rows begin where the kernels can fetch from
_DTYPES = (torch.float32, *HALVES)


class Kernels(Protocol):
    """What the Triton module offers; shapes and meanings are those of the functions that call it."""

    def norm_forward(self, x: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
        """`rms_norm.norm_forward`."""
        ...

    def norm_again(self, x: Tensor, rstd: Tensor, weight: Tensor, offset: float) -> Tensor:
        """`rms_norm.norm_again`."""
        ...

    def norm_backward(
        self, gradient: Tensor, x: Tensor, rstd: Tensor, weight: Tensor, offset: float, residual: Tensor | None
    ) -> Tensor:
        """`rms_norm.norm_backward`."""
        ...

    def gate_forward(self, e: Tensor, u: Tensor, is_silu: bool) -> Tensor:
        """`gating.gate_forward`, for silu or gelu with tanh."""
        ...

    def gate_backward(self, gradient: Tensor, e: Tensor, u: Tensor, is_silu: bool) -> tuple[Tensor, Tensor, Tensor]:
        """`gating.gate_backward`."""
        ...

    def lora_gate_forward(self, e: Tensor, u: Tensor, around: Around, is_silu: bool) -> tuple[Tensor, Tensor]:
        """`lora_gate.lora_gate_forward`, for silu or gelu with tanh."""
        ...

    def lora_gate_backward(
        self, d_e: Tensor, d_u: Tensor, e: Tensor, u: Tensor, around: Around, d_small: Tensor, is_silu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`lora_gate.lora_gate_backward`."""
        ...

    def scaled_gate_forward(self, e: Tensor, u: Tensor, gain_e: Tensor, gain_u: Tensor, is_silu: bool) -> Tensor:
        """`scaled_gate.scaled_gate_forward`, for silu or gelu with tanh."""
        ...

    def scaled_gate_backward(
        self, gradient: Tensor, e: Tensor, u: Tensor, gain_e: Tensor, gain_u: Tensor, is_silu: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """`scaled_gate.scaled_gate_backward`."""
        ...

    def rope(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        is_back: bool,
        own: tuple[Tensor, Tensor] | None = None,
        made: Tensor | None = None,
    ) -> Tensor:
        """`rope.rope`, or its gradient, written to `made` if given, after S B^T of its `own` S and B is added."""
        ...

    def turn(
        self,
        parts: Sequence[Tensor],
        cos: Tensor,
        sin: Tensor,
        is_back: bool,
        own: tuple[Tensor, Tensor] | None,
        made: Tensor,
    ) -> None:
        """The same for q, k and v at once, of which v is not turned, written side by side; S and B are so too."""
        ...

    def scale_columns(self, product: Tensor, gain: Tensor, start: Tensor | None) -> Tensor:
        """`scaling.scaled`, for a start of one row or of all."""
        ...

    def scale_rows(self, small: Tensor, factor: Tensor, scale: float) -> Tensor:
        """`scaling.scale_rows`."""
        ...

    def row_lengths(self, squares: Tensor, cross: Tensor, b: Tensor, gram: Tensor, scale: float) -> Tensor:
        """`core.adapters.dora.row_lengths`."""
        ...

    def add_product(self, start: Tensor, small: Tensor, b: Tensor) -> Tensor:
        """`group.add_product`."""
        ...

    def scale_back(
        self, gradient: Tensor, product: Tensor, gain: Tensor, made: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`scaling.scale_back`."""
        ...

    def small_gradients(
        self, whole: Tensor, b: Tensor, small: Tensor, widths: Sequence[int], wants_b: bool
    ) -> tuple[Tensor, Tensor | None]:
        """dS and dB of `small_gradients.small_gradients`, each in one, of dy, B and S that lie in one each."""
        ...

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The losses (N) of logits (N, V), which become their own gradients; a negative target counts for nothing."""
        ...

    def dropped(self, x: Tensor, seed: Tensor, p: float) -> Tensor:
        """`dropout.dropped`."""
        ...


def kernels_for(x: Tensor) -> Kernels | None:
    """The module with the kernels for a tensor's device and number format; None where there are none."""
    return _kernels() if x.is_cuda and x.dtype in _DTYPES else None


@cache
def is_hopper(device: torch.device) -> bool:
    """Whether a GPU is of the Hopper generation or newer, for which the kernels were made."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


@cache
def _kernels() -> Kernels | None:
    """The module, if Triton is here and can compile, for which it needs a C compiler."""
    compiler = os.environ.get("CC") or which("gcc") or which("clang") or which("cc")
    if torch.version.cuda is None or find_spec("triton") is None or compiler is None:
        return None
    trial = torch.zeros(1, 16, device="cuda")
    try:
        found: Any = import_module("core.ops.triton_kernels")
        made: Kernels = found
        made.gate_forward(trial, trial, is_silu=True)
    except Exception:  # a compiler's errors have no other ancestor in common
        logger.warning("Triton cannot compile here, so that steps take somewhat longer.", exc_info=True)
        return None
    return made
