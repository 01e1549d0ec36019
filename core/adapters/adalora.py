"""AdaLoRA: dW = s P diag(l) Q, of which the least important triplets (p_i, l_i, q_i) are cut (Zhang et al. 2023).

In the files P, l and Q are B, E and A. The scale s = alpha / (r + 1e-5) is that of the rank at the start, as in the
authors' code, and never changes. A triplet is cut by setting l_i to zero; P and Q are kept, so that it can come back
until the ranks are final.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from core.adapters.base import ALL_ROWS, Adapter, LayerSettings, adapters, is_transposed, layer_size
from core.adapters.rule import TrainingRule
from core.config import AdapterConfig
from core.methods.adalora import AdaLoRAOptions, AdaLoRASchedule
from core.ops.dropout import dropout
from core.ops.factor_product import add_product, factor_linear

START = 0.02  # spread of the start values of P and Q
PARTS = ("lora_A", "lora_B", "lora_E")


class BudgetRule(TrainingRule):
    """Measures importance after every step, and cuts triplets to the schedule's budget."""

    def __init__(self, adapters: Mapping[str, Adapter], config: AdapterConfig, total_steps: int) -> None:
        super().__init__(adapters, config, total_steps)
        self.options = AdaLoRAOptions(**config.method_options)
        self.schedule = AdaLoRASchedule.of(self.options, config.r, total_steps)
        self.parts = [adapter for adapter in adapters.values() if isinstance(adapter, AdaLoRA)]

    def regularizer(self) -> Tensor | None:
        """gamma times the mean of |P^T P - I| and |Q Q^T - I| over all layers; not squared, as in the authors' code."""
        if not self.options.orth_reg_weight:
            return None
        norms = [norm for adapter in self.parts for norm in adapter.distances()]
        return self.options.orth_reg_weight * torch.stack(norms).mean()

    @torch.no_grad()
    def after_update(self, step: int, optimizer: torch.optim.Optimizer) -> bool:
        """Smooth the importance while ranks still move; then cut what is over the budget."""
        is_final = step > self.total_steps - self.schedule.tfinal
        if not is_final:
            for adapter in self.parts:
                adapter.observe(self.options.beta1, self.options.beta2)
        is_round = step > self.schedule.tinit and step % self.schedule.delta_t == 0
        if is_final or is_round or step == self.total_steps - self.schedule.tfinal:
            self._cut(self.budget(step))
        return False

    def budget(self, step: int) -> int:
        """Triplets of all layers that are left after a step."""
        count = len(self.parts)
        return self.schedule.budget(step, count * self.config.r, count * self.schedule.target_r)

    @torch.no_grad()
    def _cut(self, budget: int) -> None:
        """Keep the `budget` triplets of the highest score over all layers."""
        scores = [adapter.scores() for adapter in self.parts]
        everything = torch.cat(scores)
        kept = torch.zeros_like(everything, dtype=torch.bool)
        kept[everything.topk(min(budget, len(everything))).indices] = True
        for adapter, mine in zip(self.parts, torch.split(kept, [len(score) for score in scores]), strict=True):
            adapter.lora_E.mul_(mine[:, None])


@adapters.register("adalora")
class AdaLoRA(Adapter):
    """The triplets of one Linear or Conv1D: B (out, r), E (r, 1), A (r, in)."""

    peft_type = "ADALORA"
    rule = BudgetRule
    makes_factors = True
    keys = {"lora_A": "lora_A", "lora_B": "lora_B", "lora_E": "lora_E"}
    training_state = tuple(f"{kind}_{part}" for kind in ("importance", "uncertainty") for part in PARTS)

    def __init__(self, base: nn.Module, settings: LayerSettings) -> None:
        super().__init__()
        d_in, d_out = layer_size(base)
        r, device, dtype = settings.r, settings.device, settings.dtype
        self.lora_A = nn.Parameter(torch.empty(r, d_in, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.empty(d_out, r, device=device, dtype=dtype))
        self.lora_E = nn.Parameter(torch.empty(r, 1, device=device, dtype=dtype))
        self.scale, self.dropout = settings.lora_alpha / (r + 1e-5), settings.lora_dropout
        self.is_transposed = is_transposed(base)
        for name, parameter in self.named_parameters():
            for kind in ("importance", "uncertainty"):
                self.register_buffer(f"{kind}_{name}", torch.zeros_like(parameter.detach()), persistent=False)

    @classmethod
    def from_base(cls, base: nn.Module, settings: LayerSettings) -> Adapter:
        """Make the triplets of a module."""
        return cls(base, settings)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """P and Q normal with a spread of 0.02, l zero, so that nothing changes."""
        for matrix in (self.lora_A, self.lora_B):
            matrix.copy_(torch.empty(matrix.shape, dtype=matrix.dtype).normal_(std=START, generator=generator))
        self.lora_E.zero_()

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """out + s * ((drop(x) A^T) * l) B^T, for x (..., in) and out (..., out)."""
        dropped = dropout(x.to(out.dtype), self.dropout, self.training)
        small = factor_linear(dropped, self.lora_A * self.lora_E)
        return add_product(out, small, self.lora_B, self.scale)

    def live_factors(self) -> tuple[Tensor, Tensor]:
        """diag(l) A, and B."""
        return self.lora_A * self.lora_E, self.lora_B

    def delta_weight(self, rows: slice = ALL_ROWS, dtype: torch.dtype = torch.float64) -> Tensor:
        """s * B diag(l) A, or its transpose where the weight is (in, out)."""
        a = self.lora_A.detach().to(dtype) * self.lora_E.detach().to(dtype)
        b = self.lora_B.detach().to(dtype)
        return self.scale * (a.T[rows] @ b.T if self.is_transposed else b[rows] @ a)

    def lora_factors(self) -> tuple[Tensor, Tensor]:
        """The triplets that are left, as a LoRA."""
        kept = (self.lora_E.detach() != 0).flatten()
        a = (self.lora_A.detach().double() * self.lora_E.detach().double())[kept]
        return a, self.scale * self.lora_B.detach().double()[:, kept]

    def distances(self) -> Iterator[Tensor]:
        """How far the directions of P and of Q are from being orthonormal."""
        eye = torch.eye(len(self.lora_A), device=self.lora_A.device, dtype=self.lora_A.dtype)
        yield torch.linalg.matrix_norm(self.lora_A @ self.lora_A.T - eye)
        yield torch.linalg.matrix_norm(self.lora_B.T @ self.lora_B - eye)

    def observe(self, beta1: float, beta2: float) -> None:
        """Smooth |w dL/dw| and its distance from that mean, for every number; its gradient is that of this step."""
        for name in PARTS:
            parameter: nn.Parameter = getattr(self, name)
            importance, uncertainty = getattr(self, f"importance_{name}"), getattr(self, f"uncertainty_{name}")
            if parameter.grad is None:
                continue
            now = (parameter * parameter.grad).abs()
            importance.mul_(beta1).add_(now, alpha=1 - beta1)
            uncertainty.mul_(beta2).add_((now - importance).abs(), alpha=1 - beta2)

    def scores(self) -> Tensor:
        """Importance of every triplet, (r): that of l and the means of those of p and q (section 3.2)."""
        smooth = (getattr(self, f"importance_{name}") * getattr(self, f"uncertainty_{name}") for name in PARTS)
        a, b, e = smooth
        scores: Tensor = e.flatten() + a.mean(dim=1) + b.mean(dim=0)
        return scores

    @property
    def rank(self) -> int:
        """Triplets that are left."""
        return int((self.lora_E != 0).sum())
