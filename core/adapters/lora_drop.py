"""LoRA-drop (Zhou et al. 2024, section 3): survey, choose by the size of each LoRA's output, then train again.

The survey trains a LoRA on every layer for a few steps. A layer's importance is the mean of |s B A x|^2 over the tokens
of a sample, as a share of all layers. The most important keep a LoRA of their own, all others of one shape and name
share a single pair; everything starts anew and trains for the rest of the run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from core.adapters.base import Adapter, LayerSettings, adapters
from core.adapters.lora import LoRA, LoRAEmbedding
from core.adapters.rule import TrainingRule
from core.config import AdapterConfig
from core.methods.lora_drop import LoRADropOptions

_BLOCK = re.compile(r"(.*?\.\d+)\.")  # model.layers.3


@dataclass
class Sharing:
    """Which layers are kept, and for all others the first adapter of their kind, whose pair they use."""

    paths: dict[int, str]  # id of a module -> its path
    options: LoRADropOptions
    leaders: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def place(self, path: str, adapter: Any) -> None:
        """Let an adapter use its kind's pair, unless its layer is kept (or no survey has been made)."""
        adapter.is_kept = not self.options.kept or path in self.options.kept
        if adapter.is_kept:
            return
        kind = (path.rpartition(".")[2], adapter.lora_A.shape, adapter.lora_B.shape)
        leader = self.leaders.setdefault(kind, adapter)
        adapter.lora_A, adapter.lora_B = leader.lora_A, leader.lora_B


class LoRADropRule(TrainingRule):
    """Ends the survey after its share of the steps."""

    def __init__(self, adapters: Mapping[str, Adapter], config: AdapterConfig, total_steps: int) -> None:
        super().__init__(adapters, config, total_steps)
        self.options = LoRADropOptions(**config.method_options)
        self.survey_steps = min(total_steps - 1, max(1, round(self.options.survey_share * total_steps)))
        self.importance: dict[str, float] = {}

    def after_update(self, step: int, optimizer: torch.optim.Optimizer) -> bool:
        """At the end of the survey: measure, choose, share, and start anew."""
        if self.options.kept or step != self.survey_steps:
            return False
        self.importance = self._measure()
        self._share(choose(self.importance, self.options))
        generator = torch.Generator().manual_seed(step)
        for adapter in self._parts():
            adapter.restart(generator, self.options.shared)
        return True

    def _parts(self) -> list[Any]:
        return list(self.adapters.values())

    def _measure(self) -> dict[str, float]:
        """The importance of every layer, a share of 1."""
        for adapter in self._parts():
            adapter.begin_measuring()
        self.sample()
        sizes = {path: adapter.end_measuring() for path, adapter in zip(self.adapters, self._parts(), strict=True)}
        whole = sum(sizes.values())
        return {path: size / whole if whole else 1 / len(sizes) for path, size in sizes.items()}

    def _share(self, kept: Sequence[str]) -> None:
        self.options = replace(self.options, kept=tuple(kept))
        sharing = Sharing({}, self.options)
        for path, adapter in zip(self.adapters, self._parts(), strict=True):
            sharing.place(path, adapter)
            adapter.options = self.options
        self.reconfigure(replace(self.config, method_options={**self.config.method_options, "kept": tuple(kept)}))

    def scalars(self) -> dict[str, Any]:
        """What was chosen, and why."""
        return {"kept": list(self.options.kept), "importance": self.importance}

    def load_scalars(self, values: Mapping[str, Any]) -> None:
        """Share again."""
        self.importance = dict(values["importance"])
        if values["kept"]:
            self._share(values["kept"])


def choose(importance: Mapping[str, float], options: LoRADropOptions) -> list[str]:
    """The layers that keep a LoRA of their own, in the order of the model."""
    groups: dict[str, list[str]] = {}
    for path in importance:
        block = _BLOCK.match(path)
        groups.setdefault(block[1] if block and options.scope == "layer" else path, []).append(path)
    weight = {name: sum(importance[path] for path in paths) for name, paths in groups.items()}
    kept: set[str] = set()
    total = 0.0
    for number, name in enumerate(sorted(groups, key=lambda name: -weight[name])):
        if number >= options.top_n if options.select == "top_n" else total >= options.threshold - 1e-12:
            break
        kept |= set(groups[name])
        total += weight[name]
    return [path for path in importance if path in kept]


class _Surveyed(LoRA):
    """A LoRA that can measure the size of its output, and may use another's matrices."""

    rule = LoRADropRule
    is_kept = True
    energy: Tensor | None = None  # while measuring: the sum so far
    tokens = 0

    def begin_measuring(self) -> None:
        """From now on add up |s B A x|^2."""
        self.energy = self.lora_A.new_zeros((), dtype=torch.float64)
        self.tokens = 0

    def end_measuring(self) -> float:
        """The mean size of the output of a token."""
        found = float(self.energy) / max(1, self.tokens) if self.energy is not None else 0.0
        self.energy = None
        return found

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """LoRA."""
        changed = super().forward(x, out, base)
        if self.energy is not None:
            self.energy += (changed - out).double().square().sum()
            self.tokens += out.shape[:-1].numel()
        return changed

    def live_factors(self) -> tuple[Tensor, Tensor] | None:
        """Those in use, unless the output is to be measured."""
        return (self.lora_A, self.lora_B) if self.energy is None else None

    @torch.no_grad()
    def restart(self, generator: torch.Generator, shared: str) -> None:
        """Begin anew after the survey; a frozen shared pair keeps what its first layer learned."""
        if self.is_kept or shared == "train":
            self.reset_parameters(generator)
        elif shared == "none":
            self.lora_A.zero_()
            self.lora_B.zero_()

    def trainable(self) -> list[nn.Parameter]:
        """Both matrices, unless they are shared and the shared ones do not train."""
        return super().trainable() if self.is_kept or self.options.shared == "train" else []


@adapters.register("lora_drop")
class LoRADrop(_Surveyed):
    """LoRA-drop on a Linear or Conv1D."""

    @classmethod
    def shared(cls, bases: Mapping[str, nn.Module], config: AdapterConfig, generator: Any) -> Sharing:
        """Where each module is, and what an earlier survey chose."""
        return Sharing({id(base): path for path, base in bases.items()}, LoRADropOptions(**config.method_options))

    @classmethod
    def from_base(cls, base: nn.Module, settings: LayerSettings) -> Adapter:
        """Make the LoRA of a module, or use the shared one."""
        made = super().from_base(base, settings)
        if isinstance(settings.shared, Sharing):
            settings.shared.place(settings.shared.paths[id(base)], made)
        return made

    @classmethod
    def on_embedding(cls) -> type[LoRA]:
        """The same on an embedding."""
        return LoRADropEmbedding


class LoRADropEmbedding(_Surveyed, LoRAEmbedding):
    """LoRA-drop on an embedding."""
