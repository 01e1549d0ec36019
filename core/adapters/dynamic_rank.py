"""Dynamic rank: r_t = r_min + round(r_0 exp(-beta t)) directions of a LoRA stay, the others are cut to zero for good.

The articles' formula r_t = r_0 e^(-beta t) + r_min begins at r_0 + r_min, so that is what is allocated. A direction's
worth is the size of its product, |B[:, i]| |A[i, :]|; one that is cut loses its optimizer state too, and since both of
its factors are zero, no gradient brings it back. The scale stays alpha / (first rank): rescaling by what is left is
known to hurt (AdaLoRA). With `nested`, every step trains a random leading part of the ranks at scale alpha / part
(DyLoRA, Valipour et al. 2022, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.adapters.base import Adapter, LayerSettings, adapters
from core.adapters.lora import LoRA, LoRAEmbedding
from core.adapters.rule import TrainingRule
from core.config import AdapterConfig
from core.methods.dynamic_rank import final_rank

FIXED_SHARE = 0.3  # of the steps, at the end, with the final rank


def rank_at(step: int, total_steps: int, first: int, final: int, schedule: str = "exp", beta: float = 0.0) -> int:
    """The rank after optimizer step `step` (0 is before the first) of a run: `first` falling to `final`."""
    falling = first - final
    end = max(1.0, (1 - FIXED_SHARE) * total_steps)
    if not falling:
        return final
    if schedule == "cubic":
        return final + round(falling * (1 - min(1.0, step / end)) ** 3)
    rate = beta or math.log(2 * falling) / end
    return final + math.ceil(falling * math.exp(-rate * step) - 0.5 - 1e-9)  # rounds, a half downwards


class DynamicRankRule(TrainingRule):
    """Cuts directions after every step, down to the schedule's rank."""

    def __init__(self, adapters: Mapping[str, Adapter], config: AdapterConfig, total_steps: int) -> None:
        super().__init__(adapters, config, total_steps)
        self.pairs: list[Any] = list(adapters.values())
        self.step = 0
        self.ranks: list[int] = []  # that everything has been cut to

    @torch.no_grad()
    def after_update(self, step: int, optimizer: torch.optim.Optimizer) -> bool:
        """Cut what the schedule no longer has room for, and its moments with it."""
        self._begin(step)
        ranks = [self._rank(step, adapter) for adapter in self.pairs]
        if ranks == self.ranks:  # what was cut stays zero by itself, and to look would have the device wait
            return False
        self.ranks = ranks
        is_global = bool(self.pairs) and self.pairs[0].options.scope == "global"
        worths = [adapter.worth() for adapter in self.pairs]
        if is_global:
            ranks = _spread(worths, sum(ranks))
        for adapter, worth, rank in zip(self.pairs, worths, ranks, strict=True):
            adapter.keep(worth, rank)
            adapter.forget(optimizer)
        return False

    def _rank(self, step: int, adapter: Any) -> int:
        options, first = adapter.options, adapter.mask.numel()
        final = final_rank(options, first)
        return rank_at(step, self.total_steps, first, final, options.schedule, options.beta)

    def _begin(self, step: int) -> None:
        """Draw the leading part that the next step trains; by the step, so that a resumed run draws the same."""
        self.step = step
        for place, adapter in enumerate(self.pairs if self.pairs and self.pairs[0].options.nested else ()):
            generator = torch.Generator().manual_seed(step * len(self.pairs) + place)
            adapter.leading = 1 + int(torch.randint(self._rank(step, adapter), (1,), generator=generator))

    def scalars(self) -> dict[str, Any]:
        """The step, which the next draw depends on."""
        return {"step": self.step}

    def load_scalars(self, values: Mapping[str, Any]) -> None:
        """Draw again what was drawn."""
        self._begin(int(values["step"]))


def _spread(worths: list[Tensor], budget: int) -> list[int]:
    """How many of each layer's directions are among the `budget` best of all; at least one each."""
    worths = [worth.clone() for worth in worths]
    for worth in worths:
        worth[worth.argmax()] = torch.inf
    everything = torch.cat(worths).sort(descending=True).values
    threshold = everything[min(budget, len(everything)) - 1]
    return [int((worth >= threshold).sum()) for worth in worths]


class _Shrinking(LoRA):
    """A LoRA with a mask over its directions."""

    rule = DynamicRankRule
    training_state = ("mask",)
    mask: Tensor  # (r): 1 for directions that are left

    def __init__(self, base: nn.Module, settings: LayerSettings, scale: float) -> None:
        super().__init__(base, settings, scale)
        self.register_buffer("mask", torch.ones(settings.r, device=settings.device), persistent=False)
        self.leading = 0  # directions that this step trains; 0 is all of them

    def worth(self) -> Tensor:
        """The size of each direction's product, (r); minus infinity for those that were cut."""
        size = self.lora_B.norm(dim=0) * self.lora_A.norm(dim=1)
        if self.options.nested:  # the leading ones must stay usable by themselves
            size = torch.arange(len(size), 0, -1, dtype=size.dtype, device=size.device)
        return torch.where(self.mask > 0, size, -torch.inf)

    def keep(self, worth: Tensor, rank: int) -> None:
        """Cut all but the `rank` directions of the highest worth."""
        kept = worth.topk(min(rank, int(self.mask.sum()))).indices
        self.mask.zero_()[kept] = 1.0
        self.lora_A.mul_(self.mask[:, None])
        self.lora_B.mul_(self.mask)

    def forget(self, optimizer: torch.optim.Optimizer) -> None:
        """Clear the moments of directions that were cut."""
        for parameter, mask in ((self.lora_A, self.mask[:, None]), (self.lora_B, self.mask)):
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in optimizer.state.get(parameter, {}):
                    optimizer.state[parameter][moment].mul_(mask)


@adapters.register("dynamic_rank")
class DynamicRank(_Shrinking):
    """LoRA on a Linear or Conv1D that loses directions while it trains."""

    @classmethod
    def on_embedding(cls) -> type[LoRA]:
        """The same on an embedding."""
        return DynamicRankEmbedding

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """LoRA; in a nested training step with the leading directions only."""
        if not (self.training and self.leading):
            return super().forward(x, out, base)
        part, scale = self.leading, self.scale * self.mask.numel() / self.leading
        small = F.linear(F.dropout(x.to(out.dtype), self.dropout), self.lora_A[:part].to(out.dtype))
        return out + scale * F.linear(small, self.lora_B[:, :part].to(out.dtype))

    def live_factors(self) -> tuple[Tensor, Tensor] | None:
        """Both, whose cut directions are zero; a nested step uses a part of them only."""
        return None if self.options.nested else (self.lora_A, self.lora_B)


class DynamicRankEmbedding(_Shrinking, LoRAEmbedding):
    """Dynamic rank on an embedding; it trains whole also when nested."""
