"""AdaLoRA: dW = s P diag(l) Q, of which the least important triplets (p_i, l_i, q_i) are cut (Zhang et al. 2023).

In the files P, l and Q are B, E and A. The scale s = alpha / (r + 1e-5) is that of the rank at the start, as in the
authors' code, and never changes. A triplet is cut by setting l_i to zero; P and Q are kept, so that it can come back
until the ranks are final.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from core.adapters.base import ALL_ROWS, Adapter, LayerSettings, adapters, is_transposed, layer_size
from core.adapters.rule import TrainingRule
from core.config import AdapterConfig
from core.methods.adalora import AdaLoRAOptions, AdaLoRASchedule
from core.ops.dropout import dropout
from core.ops.factor_product import add_product, factor_linear

T = TypeVar("T")

START = 0.02  # spread of the start values of P and Q
PARTS = ("lora_A", "lora_B", "lora_E")
KINDS = ("importance", "uncertainty")
TOGETHER = 64  # layers in one kernel: there are hundreds, each too small to keep a GPU busy


class BudgetRule(TrainingRule):
    """Measures importance after every step, and cuts triplets to the schedule's budget."""

    def __init__(self, adapters: Mapping[str, Adapter], config: AdapterConfig, total_steps: int) -> None:
        super().__init__(adapters, config, total_steps)
        self.options = AdaLoRAOptions(**config.method_options)
        self.schedule = AdaLoRASchedule.of(self.options, config.r, total_steps)
        self.parts = [adapter for adapter in adapters.values() if isinstance(adapter, AdaLoRA)]
        self.final: list[Tensor] | None = None  # of every layer which triplets are left (r, 1), once that is final

    def regularizer(self) -> Tensor | None:
        """gamma times the mean of |P^T P - I| and |Q Q^T - I| over all layers; not squared, as in the authors' code."""
        if not self.options.orth_reg_weight:
            return None
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for matrix in (each for part in self.parts for each in (part.lora_A, part.lora_B.T)):
            by_shape.setdefault(matrix.shape, []).append(matrix)
        norms = [distances(some) for alike in by_shape.values() for some in _bunches(alike)]
        return self.options.orth_reg_weight * torch.cat(norms).mean()

    @torch.no_grad()
    def after_update(self, step: int, optimizer: torch.optim.Optimizer) -> bool:
        """Smooth the importance while ranks still move; then cut what is over the budget."""
        last = self.total_steps - self.schedule.tfinal
        if step <= last:
            observe(self.parts, self.options.beta1, self.options.beta2)
        is_round = step > self.schedule.tinit and step % self.schedule.delta_t == 0
        if is_round or step >= last:
            kept = self.final or self._chosen(self.budget(step))
            self.final = kept if step > last else None
            torch._foreach_mul_([part.lora_E for part in self.parts], kept)
        return False

    def load_scalars(self, values: Mapping[str, Any]) -> None:
        """Which triplets are left follows from the importance, which is read as well."""
        self.final = None

    def budget(self, step: int) -> int:
        """Triplets of all layers that are left after a step."""
        count = len(self.parts)
        return self.schedule.budget(step, count * self.config.r, count * self.schedule.target_r)

    def _chosen(self, budget: int) -> list[Tensor]:
        """1 for the `budget` triplets of the highest score over all layers, (r, 1) for each."""
        scores = [part.scores() for part in self.parts]
        everything = torch.cat(scores)
        kept = torch.zeros_like(everything)
        kept[everything.topk(min(budget, len(everything))).indices] = 1.0
        return [some[:, None] for some in torch.split(kept, [len(score) for score in scores])]


def observe(parts: Sequence[AdaLoRA], beta1: float, beta2: float) -> None:
    """Smooth |w dL/dw| and its distance from that mean, for every number; its gradient is that of this step."""
    for name in PARTS:
        for some in _bunches([part for part in parts if getattr(part, name).grad is not None]):
            weights = [getattr(part, name) for part in some]
            importance, uncertainty = ([getattr(part, f"{kind}_{name}") for part in some] for kind in KINDS)
            now = torch._foreach_mul(weights, [weight.grad for weight in weights])
            torch._foreach_abs_(now)
            torch._foreach_mul_(importance, beta1)
            torch._foreach_add_(importance, now, alpha=1 - beta1)
            torch._foreach_sub_(now, importance)
            torch._foreach_abs_(now)
            torch._foreach_mul_(uncertainty, beta2)
            torch._foreach_add_(uncertainty, now, alpha=1 - beta2)


def distances(matrices: Sequence[Tensor]) -> Tensor:
    """|M M^T - I| of some matrices M (r, n), all of one shape: how far their rows are from being orthonormal."""
    found: Tensor = _Distances.apply(*matrices)  # type: ignore[no-untyped-call]
    return found


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *matrices: Tensor) -> Tensor:
        stacked = torch.stack(matrices)
        off = stacked @ stacked.mT - torch.eye(stacked.shape[1], device=stacked.device, dtype=stacked.dtype)
        norms: Tensor = torch.linalg.matrix_norm(off)
        ctx.save_for_backward(off, norms, *matrices)  # not the stack: it would be a copy of all factors
        return norms

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """d|G| / dM = 2 G M / |G| for G = M M^T - I; where that is zero, nothing pulls."""
        off, norms, *matrices = ctx.saved_tensors
        pull = torch.where(norms > 0, 2 * grad / norms, 0.0)
        return (pull[:, None, None] * off @ torch.stack(matrices)).unbind()


def _bunches(items: list[T]) -> Iterator[list[T]]:
    return (items[start : start + TOGETHER] for start in range(0, len(items), TOGETHER))


@adapters.register("adalora")
class AdaLoRA(Adapter):
    """The triplets of one Linear or Conv1D: B (out, r), E (r, 1), A (r, in)."""

    peft_type = "ADALORA"
    rule = BudgetRule
    makes_factors = True
    keys = {"lora_A": "lora_A", "lora_B": "lora_B", "lora_E": "lora_E"}
    training_state = tuple(f"{kind}_{part}" for kind in KINDS for part in PARTS)

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
            for kind in KINDS:
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
