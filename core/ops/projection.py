"""One linear layer of a model with at most one LoRA on it, or what can be written as one, or DoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.adapters.base import weight_like
from core.adapters.dora import DoRA
from core.ops.dropout import draw_seed, dropout_reference
from core.ops.precision import compute_dtype
from core.ops.product import takes_onednn
from core.quantize.linear import QuantizedLinear


class LowRank(Protocol):
    """An adapter that adds s drop(x) A^T B^T, such as LoRA."""

    scale: float
    dropout: float
    training: bool

    @property
    def makes_factors(self) -> bool:
        """Whether A and B are no parameters, but made of them at every call."""
        ...

    def live_factors(self) -> tuple[Tensor, Tensor] | None:
        """A and B."""
        ...


@dataclass(frozen=True)
class Projection:
    """y = g (x W^T + s drop(x) A^T B^T) + bias, with g = 1 but for DoRA: m over the length of the row of W + s B A."""

    base: nn.Module  # a frozen Linear or QuantizedLinear
    adapter: LowRank | None = None

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias (out)."""
        bias: Tensor | None = self.base.bias  # type: ignore[assignment]
        return bias

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """A (r, in) and B (out, r), and DoRA's m (out); none without an adapter."""
        if self.adapter is None:
            return ()
        own = self.adapter.live_factors()
        assert own is not None  # for the type checker: `core.ops.recognition` lets no other pass
        return (*own, self.adapter.magnitude) if isinstance(self.adapter, DoRA) else own

    @property
    def is_dora(self) -> bool:
        """Whether the output is scaled."""
        return isinstance(self.adapter, DoRA)

    @property
    def is_slow_alone(self) -> bool:
        """Whether the layer itself would take longer, emulating 16-bit products or with those of MKL."""
        like = weight_like(self.base)
        return compute_dtype(like) != like.dtype or takes_onednn(like)

    @property
    def scale(self) -> float:
        """s."""
        return 0.0 if self.adapter is None else self.adapter.scale

    @property
    def dropout(self) -> float:
        """The share dropped now: 0 outside training."""
        return self.adapter.dropout if self.adapter is not None and self.adapter.training else 0.0

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The frozen weight (out, in); of a quantised layer worked out at every call."""
        if isinstance(self.base, QuantizedLinear):
            return self.base.dequantize(dtype)
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return weight.detach().to(dtype)

    def start(self, dtype: torch.dtype, residual: Tensor | None) -> Tensor | None:
        """What a product is added to: the bias (out), a residual (N, out), their sum, or nothing."""
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        if residual is None or bias is None:
            return bias if residual is None else residual
        return residual + bias

    def norms(self) -> Tensor:
        """The length of every row of W + s B A, (out), for DoRA."""
        assert isinstance(self.adapter, DoRA)
        return self.adapter.norms(self.base)

    def draw_seed(self, x: Tensor) -> Tensor | None:
        """The seed of this call's dropout mask, or None where nothing is dropped."""
        return draw_seed(x.device) if self.dropout else None

    def reference(self, x: Tensor, seed: Tensor | None = None) -> Tensor:
        """The definition, in plain operations, for x (..., in)."""
        y = F.linear(x, self.weight(x.dtype))
        if self.adapter is not None:
            kept = x if seed is None else dropout_reference(x, seed, self.dropout)
            a, b = (each.to(x.dtype) for each in self.parameters[:2])
            y = y + self.scale * F.linear(F.linear(kept, a), b)
        if isinstance(self.adapter, DoRA):
            y = y * (self.adapter.magnitude / self.norms()).to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)
