"""DoRA: W' = m V / |V| with V = W + s B A and |V| the norm of each output's row (Liu et al. 2024, section 4).

m starts as |W|, so that W' starts as W. The norm is a constant in the backward pass (section 4.3). It is worked out
from the factors, |W|^2 + 2 s <B, W A^T> + s^2 <B A A^T, B> by rows, and V is never formed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.adapters.base import (
    ALL_ROWS,
    LayerSettings,
    adapters,
    is_transposed,
    layer_size,
    weight_value,
)
from core.adapters.lora import LoRA
from core.ops.factor_product import factor_linear
from core.ops.kernels import WIDEST, kernels_for


@adapters.register("dora")
class DoRA(LoRA):
    """DoRA on a Linear or Conv1D."""

    peft_fields = {"use_dora": True}
    keys = {**LoRA.keys, "magnitude": "lora_magnitude_vector"}
    is_additive = False

    def __init__(self, base: nn.Module, settings: LayerSettings, scale: float) -> None:
        super().__init__(base, settings, scale)
        _, d_out = layer_size(base)
        self.magnitude = nn.Parameter(torch.empty(d_out, device=settings.device, dtype=settings.dtype))
        self.is_blockwise = not self.is_transposed  # there a row of the weight holds a part of every output
        self._base = [base]  # in a list, so that it does not become a part of the adapter
        self._squares: Tensor | None = None
        self._squares_of = (0, 0)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """LoRA's start, and the lengths of the base's rows."""
        super().reset_parameters(generator)
        self.magnitude.copy_(self.norms(self._base[0]))

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """g (W x + s B A drop(x)) + bias for g = m / |V|; with dropout W x is dropped out in the part g - 1 too."""
        bias = getattr(base, "bias", None)
        gain = (self.magnitude / self.norms(base)).to(out.dtype)  # (out), exactly 1 at the start
        plain = out if bias is None else out - bias
        x = x.to(out.dtype)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
            plain = F.linear(x, self._rows(base).to(out.dtype))
        update = factor_linear(factor_linear(x, self.lora_A), self.lora_B)
        return out + (gain - 1) * plain + (gain * self.scale) * update

    def live_factors(self) -> tuple[Tensor, Tensor] | None:
        """A and B, of what the gain is on top; None with dropout, which reaches the base's product too."""
        return None if self.dropout else (self.lora_A, self.lora_B)

    @torch.no_grad()
    def norms(self, base: nn.Module) -> Tensor:
        """|W + s B A| of every row, (out), in the adapter's own dtype."""
        weight, a, b = self._rows(base), self.lora_A, self.lora_B
        if self._squares is None or self._squares_of != _mark(weight):  # the base is frozen, but may be loaded anew
            self._squares, self._squares_of = weight.to(b.dtype).square().sum(dim=1), _mark(weight)
        return row_lengths(self._squares, F.linear(weight, a.to(weight.dtype)), b, a @ a.T, self.scale)

    def _rows(self, base: nn.Module) -> Tensor:
        """The base's weight as (out, in)."""
        weight = weight_value(base).detach()
        return weight.T if is_transposed(base) else weight

    def merge_block(self, block: Tensor, rows: slice) -> Tensor:
        """m V / |V| of a block of whole rows, or of the whole transposed weight."""
        turned = block + self.delta_weight(rows, block.dtype)
        magnitude = self.magnitude.detach().to(block.dtype)
        lengths: Tensor = torch.linalg.vector_norm(turned, dim=0 if self.is_transposed else 1)
        gain = magnitude / lengths if self.is_transposed else (magnitude[rows] / lengths)[:, None]
        return turned * gain

    def delta_weight(self, rows: slice = ALL_ROWS, dtype: torch.dtype = torch.float64) -> Tensor:
        """s B A alone: the change of the direction before it is scaled to its length."""
        return super().delta_weight(rows, dtype)

    def lora_factors(self) -> None:
        """The change is not of low rank."""
        return None

    def weight_decays(self, parameter: nn.Parameter) -> bool:
        """The matrices alone: a length must not be pulled to 0."""
        return parameter is not self.magnitude


def row_lengths(squares: Tensor, cross: Tensor, b: Tensor, gram: Tensor, scale: float) -> Tensor:
    """|W + s B A| by rows, (out), of |W|^2 by rows, W A^T (out, r), B (out, r) and A A^T (r, r)."""
    if (kernels := kernels_for(b)) is not None and b.shape[1] <= WIDEST:
        return kernels.row_lengths(squares, cross, b, gram, scale)
    added = (2 * scale * cross.to(b.dtype) + scale**2 * (b @ gram)) * b
    return (squares + added.sum(dim=1)).clamp_min(0).sqrt()


def _mark(weight: Tensor) -> tuple[int, int]:
    """Tells whether a weight is the one seen before, and unchanged."""
    return weight.data_ptr(), weight._version
