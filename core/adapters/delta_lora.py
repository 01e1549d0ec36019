"""Delta-LoRA: after each step W <- W + lambda s (B' A' - B A), beside LoRA's own s B A (Zi et al. 2023, section 3.2).

The movements telescope: after step T the weight has moved by lambda s (B_T A_T - B_K A_K) since step K, whatever came
between. So nothing has to be changed: the functional mode adds exactly that to the output, treats it as a constant, and
keeps the base frozen, shareable and quantised if it was. The mutating mode does what the article's code does, to the
same numbers. With K = 0 and Adam this is LoRA at alpha (1 + lambda), since Adam does not see the gradient's scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.adapters.base import ALL_ROWS, Adapter, LayerSettings, adapters, layer_size
from core.adapters.lora import LoRA
from core.adapters.rule import TrainingRule


class DeltaRule(TrainingRule):
    """Takes the snapshot B_K A_K after K steps, and adds up the literal movements in the mutating mode."""

    def before_update(self, step: int) -> None:
        """Remember what the movement is counted from."""
        for adapter in self._parts():
            if step == adapter.options.start_step + 1:
                adapter.take_snapshot()
            if adapter.replaces_parameters:
                adapter.before = adapter.product()

    def after_update(self, step: int, optimizer: torch.optim.Optimizer) -> bool:
        """W <- W + lambda s (B' A' - B A), where that is done literally."""
        for adapter in self._parts():
            if adapter.replaces_parameters and step > adapter.options.start_step:
                adapter.moved += adapter.delta_scale * (adapter.product() - adapter.before)
        return False

    def _parts(self) -> list[Any]:
        return list(self.adapters.values())


@adapters.register("delta_lora")
class DeltaLoRA(LoRA):
    """Delta-LoRA on a Linear or Conv1D."""

    peft_type = "DELTA_LORA"
    rule = DeltaRule
    makes_factors = True
    keys = {**LoRA.keys, "start_A": "delta_A.weight", "start_B": "delta_B.weight", "is_moving": "delta_moving"}
    is_moving: Tensor  # 1 once the snapshot is taken, 0 before
    start_A: Tensor  # A_K
    start_B: Tensor  # B_K

    def __init__(self, base: nn.Module, settings: LayerSettings, scale: float) -> None:
        super().__init__(base, settings, scale)
        self.delta_scale = float(self.options.delta_scale) * scale  # lambda s
        for name, like in (("start_A", self.lora_A), ("start_B", self.lora_B)):
            self.register_buffer(name, torch.zeros(like.shape, device=like.device, dtype=like.dtype))
        self.register_buffer("is_moving", torch.zeros((), device=settings.device, dtype=settings.dtype))

    @classmethod
    def from_base(cls, base: nn.Module, settings: LayerSettings) -> Adapter:
        """Make the functional or the mutating one."""
        kind = MutatingDeltaLoRA if settings.options.mode == "mutate" else DeltaLoRA
        return kind(base, settings, cls.scaling(settings))

    @torch.no_grad()
    def take_snapshot(self) -> None:
        """From now on the weight moves by what B A does from here."""
        self.start_A.copy_(self.lora_A)
        self.start_B.copy_(self.lora_B)
        self.is_moving.fill_(1.0)

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """LoRA's output, and that of the movement, which is constant: a gradient flows through it to x only."""
        out = super().forward(x, out, base)
        a, b, start_a, start_b = self._constants(out.dtype)
        x = x.to(out.dtype)
        small = torch.cat([F.linear(x, a), F.linear(x, -start_a)], dim=-1)  # (..., 2 r)
        moves = self.is_moving.to(out.dtype) * self.delta_scale
        return out + moves * F.linear(small, torch.cat([b, start_b], dim=1))

    def live_factors(self) -> tuple[Tensor, Tensor] | None:
        """LoRA's, and as further directions the two ends of the movement."""
        if type(self) is not DeltaLoRA:
            return None
        a, b, start_a, start_b = self._constants(self.lora_A.dtype)
        moves = self.is_moving * float(self.options.delta_scale)
        return torch.cat([self.lora_A, a, start_a]), torch.cat([self.lora_B, moves * b, -moves * start_b], dim=1)

    def movement(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """How far the weight has moved, (out, in): lambda s (B A - B_K A_K)."""
        a, b, start_a, start_b = self._constants(dtype)
        return self.is_moving.to(dtype) * self.delta_scale * (b @ a - start_b @ start_a)

    def delta_weight(self, rows: slice = ALL_ROWS, dtype: torch.dtype = torch.float64) -> Tensor:
        """s (1 + lambda) B A - lambda s B_K A_K, or its transpose where the weight is (in, out)."""
        moved = self.movement(dtype)
        return super().delta_weight(rows, dtype) + (moved.T if self.is_transposed else moved)[rows]

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """The same update as one LoRA of twice the rank."""
        a, b, start_a, start_b = self._constants(torch.float64)
        moves = float(self.is_moving) * self.delta_scale
        return torch.cat([a, start_a]), torch.cat([(self.scale + moves) * b, -moves * start_b], dim=1)

    def _constants(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b, start_a, start_b = (
            part.detach().to(dtype) for part in (self.lora_A, self.lora_B, self.start_A, self.start_B)
        )
        return a, b, start_a, start_b


class MutatingDeltaLoRA(DeltaLoRA):
    """The article's code to the letter: a weight that every step adds to. It costs a copy of the weight.

    The sum is kept beside the base's weight, which other adapters and the bare model go on using.
    """

    replaces_parameters = True
    training_state = ("moved",)
    moved: Tensor  # the sum of all movements, (out, in)

    def __init__(self, base: nn.Module, settings: LayerSettings, scale: float) -> None:
        super().__init__(base, settings, scale)
        d_in, d_out = layer_size(base)
        self.register_buffer(
            "moved", torch.zeros(d_out, d_in, device=settings.device, dtype=settings.dtype), persistent=False
        )
        self.before: Tensor | None = None  # B A before the step
        self._adds_up = False  # False: read from a file, which holds the two ends and not the sum

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """LoRA's start; nothing has moved."""
        super().reset_parameters(generator)
        self._adds_up = True

    def product(self) -> Tensor:
        """B A, (out, in)."""
        return self.lora_B.detach() @ self.lora_A.detach()

    def changed_parameters(self, base: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weight where it is by now."""
        weight = values.get("weight", base.get_parameter("weight"))
        if not self._adds_up:
            self.moved.copy_(self.movement())
            self._adds_up = True
        return {"weight": weight + (self.moved.T if self.is_transposed else self.moved).to(weight.dtype)}

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """LoRA; the weight has moved already."""
        return LoRA.forward(self, x, out, base)
