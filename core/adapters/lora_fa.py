"""LoRA-FA: A is frozen where it was drawn and only B trains (Zhang et al. 2023).

For B's gradient only A x is kept, r numbers a token, and not x. The second version of the paper feeds the optimizer
with (1 / s^2) g_B (A A^T + eps I)^-1, the choice that makes s B A's step the full gradient projected on A's rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.adapters.base import Adapter, adapters
from core.adapters.lora import LoRA
from core.adapters.rule import TrainingRule
from core.config import AdapterConfig

RIDGE = 1e-8


class ProjectionRule(TrainingRule):
    """Corrects B's gradient; A never changes, so each layer's inverse is worked out once."""

    def __init__(self, adapters: Mapping[str, Adapter], config: AdapterConfig, total_steps: int) -> None:
        super().__init__(adapters, config, total_steps)
        self.inverses: dict[str, Tensor] = {}

    @torch.no_grad()
    def before_update(self, step: int) -> None:
        """g_B <- (1 / s^2) g_B (A A^T + eps I)^-1."""
        for path, adapter in self.adapters.items():
            if isinstance(adapter, LoRAFA) and adapter.options.correction == "gradient":
                gradient = adapter.lora_B.grad
                if gradient is not None:
                    gradient.copy_(gradient.double() @ self._inverse(path, adapter))

    def _inverse(self, path: str, adapter: LoRAFA) -> Tensor:
        if path not in self.inverses:
            a = adapter.lora_A.detach().double()
            gram = a @ a.T + RIDGE * torch.eye(len(a), dtype=a.dtype, device=a.device)
            self.inverses[path] = torch.linalg.inv(gram) / adapter.scale**2
        return self.inverses[path]


@adapters.register("lora_fa")
class LoRAFA(LoRA):
    """LoRA of which only B trains."""

    rule = ProjectionRule

    def trainable(self) -> list[nn.Parameter]:
        """B alone: with A frozen, autograd keeps A x for the backward pass and not x."""
        return [self.lora_B]
