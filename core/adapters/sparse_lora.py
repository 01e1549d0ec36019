"""Sparse LoRA in three readings of the articles' dW = sum_i B_i A_i.

block: each term has its own slice of inputs and outputs, so dW is block-diagonal: m times the rank of LoRA for the same
number of parameters, and a share 1/m of its entries (MELoRA, Ren et al. 2024, section 3). gated: dW = s B diag(g) A, of
which a proximal step after every update closes weak gates, so that the rank is the number of open ones (SoRA, Ding et
al. 2023, section 3). sum: the literal sum, which is one LoRA of m times the rank and not sparse at all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.adapters.base import ALL_ROWS, Adapter, LayerSettings, adapters, is_transposed, layer_size
from core.adapters.lora import LoRA
from core.adapters.rule import TrainingRule
from core.methods.sparse_lora import FEW_BLOCKS
from core.ops.dropout import dropout
from core.ops.factor_product import add_product, factor_linear

WEAK_GATE = 0.5  # gates start normal with spread 1; those that stay below this close within a run


class GateRule(TrainingRule):
    """Pulls every gate towards 0 after each step, and lets it stay there: g <- sign(g) max(|g| - threshold, 0)."""

    @torch.no_grad()
    def after_update(self, step: int, optimizer: torch.optim.Optimizer) -> bool:
        """The proximal operator of the gates' 1-norm."""
        for adapter in self.adapters.values():
            if isinstance(adapter, GatedLoRA):
                pull = adapter.options.threshold or WEAK_GATE / self.total_steps
                adapter.lora_gate.copy_(F.softshrink(adapter.lora_gate, pull))
        return False


@adapters.register("sparse_lora")
class SparseLoRA(LoRA):
    """The reading that the option `mode` names."""

    peft_type = "SPARSE_LORA"
    rule = GateRule

    @classmethod
    def from_base(cls, base: nn.Module, settings: LayerSettings) -> Adapter:
        """Make the sparse LoRA of a module."""
        scale, options = cls.scaling(settings), settings.options
        if options.mode == "block":
            return BlockLoRA(base, settings, scale)
        if options.mode == "gated":
            return GatedLoRA(base, settings, scale)
        return LoRA(base, replace(settings, r=settings.r * options.blocks), scale)


class GatedLoRA(LoRA):
    """LoRA with a gate on each direction: s B diag(g) A."""

    keys = {**LoRA.keys, "lora_gate": "lora_gate"}
    makes_factors = True

    def __init__(self, base: nn.Module, settings: LayerSettings, scale: float) -> None:
        super().__init__(base, settings, scale)
        self.lora_gate = nn.Parameter(torch.empty(settings.r, device=settings.device, dtype=settings.dtype))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """LoRA's start, and gates that are standard normal."""
        super().reset_parameters(generator)
        self.lora_gate.copy_(torch.empty(self.lora_gate.shape, dtype=self.lora_gate.dtype).normal_(generator=generator))

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """out + s * ((drop(x) A^T) * g) B^T, for x (..., in)."""
        dropped = dropout(x.to(out.dtype), self.dropout, self.training)
        small = factor_linear(dropped, self.lora_A) * self.lora_gate.to(out.dtype)
        return add_product(out, small, self.lora_B, self.scale)

    def live_factors(self) -> tuple[Tensor, Tensor]:
        """diag(g) A, and B."""
        return self.lora_gate[:, None] * self.lora_A, self.lora_B

    def delta_weight(self, rows: slice = ALL_ROWS, dtype: torch.dtype = torch.float64) -> Tensor:
        """s * B diag(g) A, or its transpose where the weight is (in, out)."""
        gate, b = self.lora_gate.detach().to(dtype), self.lora_B.detach().to(dtype)
        a = gate[:, None] * self.lora_A.detach().to(dtype)
        return self.scale * (a.T[rows] @ b.T if self.is_transposed else b[rows] @ a)

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """The open directions, with the gates in A."""
        gate = self.lora_gate.detach().double()
        a, b = gate[:, None] * self.lora_A.detach().double(), self.scale * self.lora_B.detach().double()
        return a[gate != 0], b[:, gate != 0]


class BlockLoRA(Adapter):
    """m LoRAs along the diagonal: A (m, r, in / m), B (m, out / m, r)."""

    keys = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    makes_factors = True

    def __init__(self, base: nn.Module, settings: LayerSettings, scale: float) -> None:
        super().__init__()
        d_in, d_out = layer_size(base)
        m, r, device, dtype = settings.options.blocks, settings.r, settings.device, settings.dtype
        self.lora_A = nn.Parameter(torch.empty(m, r, d_in // m, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.empty(m, d_out // m, r, device=device, dtype=dtype))
        self.scale, self.dropout = scale, settings.lora_dropout
        self.is_transposed = is_transposed(base)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Every A uniform with the variance of a LoRA on the whole layer, every B zero."""
        bound = 1 / (self.lora_A.shape[0] * self.lora_A.shape[2]) ** 0.5
        start = torch.empty(self.lora_A.shape, dtype=self.lora_A.dtype).uniform_(-bound, bound, generator=generator)
        self.lora_A.copy_(start)
        self.lora_B.zero_()

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """Each slice of x (..., in) through its own pair to its own slice of the output."""
        dropped = dropout(x.to(out.dtype), self.dropout, self.training)
        slices = dropped.reshape(-1, self.lora_A.shape[0], self.lora_A.shape[2]).transpose(0, 1)  # (m, N, in / m)
        small = torch.bmm(slices, self.lora_A.to(out.dtype).mT)  # (m, N, r)
        pieces = torch.bmm(small, self.lora_B.to(out.dtype).mT)  # (m, N, out / m)
        return out + self.scale * pieces.transpose(0, 1).reshape(out.shape)

    def live_factors(self) -> tuple[Tensor, Tensor] | None:
        """Both as one matrix; of many blocks that would be zeros for the most part."""
        if len(self.lora_A) > FEW_BLOCKS:
            return None
        return torch.block_diag(*self.lora_A), torch.block_diag(*self.lora_B)  # type: ignore[no-untyped-call]

    def delta_weight(self, rows: slice = ALL_ROWS, dtype: torch.dtype = torch.float64) -> Tensor:
        """The block-diagonal matrix, or its transpose where the weight is (in, out)."""
        a, b = self.lora_A.detach().to(dtype), self.lora_B.detach().to(dtype)
        delta: Tensor = self.scale * torch.block_diag(*(b @ a))  # type: ignore[no-untyped-call]
        return delta.T[rows] if self.is_transposed else delta[rows]

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """The same update as one LoRA of m times the rank, of which most entries are zero."""
        a, b = self.lora_A.detach().double(), self.scale * self.lora_B.detach().double()
        return torch.block_diag(*a), torch.block_diag(*b)  # type: ignore[no-untyped-call]


def open_gates(adapter: Any) -> int:
    """Directions of a gated LoRA that are left."""
    return int((adapter.lora_gate != 0).sum())
