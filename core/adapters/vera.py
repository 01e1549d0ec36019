"""VeRA: h = W x + b * (B (d * (A x))) with A and B random, frozen, and one pair for all layers (Kopiczko et al. 2023).

A layer takes the first columns of A and the first rows of B. They are drawn as PEFT draws them (kaiming uniform with
gain sqrt 2, A before B, on the CPU), so that a file without them means the same here and there.

In 16 bits the vectors stay float32, and so do the sums of their gradients; b scales the rows of B before these are
rounded, so that nothing of the size of the output is made, and of a pass only A x is kept, (..., r).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.adapters.base import ALL_ROWS, Adapter, LayerSettings, adapters, is_transposed, layer_size
from core.adapters.state import SHARED_PREFIX
from core.config import AdapterConfig
from core.methods import options_of
from core.ops.factor_product import rows_of, shaped
from core.ops.precision import norm_dtype
from core.ops.wide_product import wide_product


class Projections:
    """The shared pair, once per device and dtype whatever the number of layers; never a part of any module."""

    def __init__(self, r: int, d_in: int, d_out: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.a = _kaiming((r, d_in), generator)
        self.b = _kaiming((d_out, r), generator)
        self._copies: dict[tuple[torch.device, torch.dtype], tuple[tuple[int, int], Tensor, Tensor]] = {}

    def on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and B on a device, copied anew when they were read from a file since."""
        version = (self.a._version, self.b._version)
        known = self._copies.get((device, dtype))
        if known is None or known[0] != version:
            known = (version, self.a.to(device, dtype), self.b.to(device, dtype))
            self._copies[device, dtype] = known
        return known[1], known[2]


def _kaiming(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Uniform in +-sqrt(6 / fan_in), which is the second of the two sizes."""
    bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


@adapters.register("vera")
class VeRA(Adapter):
    """The two vectors of one Linear or Conv1D."""

    peft_type = "VERA"
    keys = {"lambda_b": "vera_lambda_b", "lambda_d": "vera_lambda_d"}

    def __init__(self, base: nn.Module, settings: LayerSettings) -> None:
        super().__init__()
        self.d_in, self.d_out = layer_size(base)
        device, dtype = settings.device, settings.dtype
        self.lambda_b = nn.Parameter(torch.empty(self.d_out, device=device, dtype=dtype))
        self.lambda_d = nn.Parameter(torch.empty(settings.r, device=device, dtype=dtype))
        self.projections: Projections = settings.shared
        self.options, self.dropout = settings.options, settings.lora_dropout
        self.is_transposed = is_transposed(base)

    @classmethod
    def shared(
        cls, bases: Mapping[str, nn.Module], config: AdapterConfig, generator: torch.Generator | None
    ) -> Projections:
        """The pair, as large as the largest layer; drawn from its own seed."""
        sizes = [layer_size(base) for base in bases.values()]
        d_in, d_out = max(size[0] for size in sizes), max(size[1] for size in sizes)
        return Projections(config.r, d_in, d_out, options_of(config).projection_prng_key)

    @classmethod
    def from_base(cls, base: nn.Module, settings: LayerSettings) -> Adapter:
        """Make the vectors of a module."""
        return cls(base, settings)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """b zero, so that nothing changes, and d a small constant."""
        self.lambda_b.zero_()
        self.lambda_d.fill_(self.options.d_initial)

    def tensors(self) -> dict[str, Tensor]:
        """The vectors, and the shared pair unless its seed is enough."""
        shared = {f"{SHARED_PREFIX}vera_A": self.projections.a, f"{SHARED_PREFIX}vera_B": self.projections.b}
        return super().tensors() | (shared if self.options.save_projection else {})

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """out + b * (B (d * (A drop(x)))), for x (..., in) and out (..., out)."""
        a, b = self._pair(out.device, out.dtype)
        dropped = F.dropout(x.to(out.dtype), self.dropout, self.training)
        if torch.is_grad_enabled() or dropped.numel() > a.numel():
            _, exact = self._pair(out.device, norm_dtype(out))
            changed: Tensor = _Change.apply(dropped, out, self.lambda_d, self.lambda_b, a, exact)  # type: ignore[no-untyped-call]
            return changed
        small = F.linear(dropped, a) * self.lambda_d  # of few rows, which cost less to scale than B
        return (out + F.linear(small.to(out.dtype), b) * self.lambda_b).to(out.dtype)

    def delta_weight(self, rows: slice = ALL_ROWS, dtype: torch.dtype = torch.float64) -> Tensor:
        """diag(b) B diag(d) A, or its transpose where the weight is (in, out)."""
        a, b = (part.to(dtype) for part in self._scaled())
        return a.T[rows] @ b.T if self.is_transposed else b[rows] @ a

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """The same update as a LoRA of this rank."""
        return self._scaled()

    def _scaled(self) -> tuple[Tensor, Tensor]:
        a, b = self._pair(self.lambda_b.device, torch.float64)
        return self.lambda_d.detach().double()[:, None] * a, self.lambda_b.detach().double()[:, None] * b

    def _pair(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        a, b = self.projections.on(device, dtype)
        return a[:, : self.d_in], b[: self.d_out]


class _Change(torch.autograd.Function):
    """out + (A x * d) (diag(b) B)^T for x (..., in), out (..., out), d (r), b (out), A (r, in) and B (out, r).

    With G = dy^T (A x), (out, r), the gradient of d is b^T (B * G), and that of b is (B * G) d: one product gives both,
    and neither sees the rounding of diag(b) B, which is the same for all tokens and would add up over them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, out: Tensor, d: Tensor, b: Tensor, a: Tensor, exact: Tensor) -> Tensor:
        small = F.linear(x, a)
        ctx.save_for_backward(small, d, b, a, exact)
        scaled = (b[:, None] * exact).to(out.dtype)
        return shaped(torch.addmm(rows_of(out), rows_of((small * d).to(out.dtype)), scaled.T), out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (small, d, b, a, exact) = gradients, ctx.saved_tensors
        dy = rows_of(gradient)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_small = (dy @ (b[:, None] * exact).to(dy.dtype)) * d
            d_x = (d_small.to(dy.dtype) @ a).view(*gradient.shape[:-1], -1)
        both = exact * wide_product(dy.T, rows_of(small), exact.dtype)
        return d_x, gradient, (b @ both).to(d.dtype), (both @ d).to(b.dtype), None, None
