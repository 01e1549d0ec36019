"""LoRA on single parameters of a module, such as the experts of a mixture, which transformers stores in one 3-D tensor.

Each expert e has its own pair: W_e + s B_e A_e. Both matrices of all experts lie in two tensors, as PEFT lays them out:
A (E r, in) expert after expert, and B (out, r E) with the expert as the fastest index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from core.adapters.base import ALL_ROWS, Adapter, LayerSettings
from core.errors import ConfigError


class ParameterLoRA(Adapter):
    """LoRA on one parameter: (E, out, in), (E, in, out) where the module `is_transposed`, or a plain (out, in)."""

    keys = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}

    def __init__(self, weight: Tensor, settings: LayerSettings, scale: float, is_transposed: bool) -> None:
        super().__init__()
        if weight.ndim not in (2, 3):
            raise ConfigError(f"A parameter of shape {tuple(weight.shape)} has no rows and columns.", "Leave it out.")
        self.experts = weight.shape[0] if weight.ndim == 3 else 1
        d_out, d_in = weight.shape[-2:]
        self.is_transposed = is_transposed and weight.ndim == 3
        if self.is_transposed:
            d_in, d_out = d_out, d_in
        self.r, self.scale = settings.r, scale
        r, device, dtype = settings.r, settings.device, settings.dtype
        self.lora_A = nn.Parameter(torch.empty(self.experts * r, d_in, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.empty(d_out, r * self.experts, device=device, dtype=dtype))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """A uniform with variance 1 / (3 in), B zero."""
        bound = 1 / math.sqrt(self.lora_A.shape[1])
        start = torch.empty(self.lora_A.shape, dtype=self.lora_A.dtype).uniform_(-bound, bound, generator=generator)
        self.lora_A.copy_(start)
        self.lora_B.zero_()

    def added_to(self, weight: Tensor) -> Tensor:
        """The parameter with its update, in its own dtype: one fused product over all experts."""
        left, right = self._factors(ALL_ROWS)
        flat = weight if weight.ndim == 3 else weight.unsqueeze(0)
        changed = torch.baddbmm(flat, left.to(weight.dtype), right.to(weight.dtype), alpha=self.scale)
        return changed.view(weight.shape)

    def delta_weight(self, rows: slice = ALL_ROWS, dtype: torch.dtype = torch.float64) -> Tensor:
        """s B A of the experts `rows`, or of the rows `rows` of a plain matrix, in the layout of the parameter."""
        left, right = (part.detach().to(dtype) for part in self._factors(rows if self.experts > 1 else ALL_ROWS))
        delta = self.scale * (left @ right)
        return delta if self.experts > 1 else delta[0][rows]

    def _factors(self, experts: slice) -> tuple[Tensor, Tensor]:
        a = self.lora_A.view(self.experts, self.r, -1)[experts]  # (E, r, in)
        b = self.lora_B.view(-1, self.r, self.experts).permute(2, 0, 1)[experts]  # (E, out, r)
        return (a.mT, b.mT) if self.is_transposed else (b, a)


class ModuleParameters(Adapter):
    """The adapters on some parameters of one module, which then runs with the changed parameters."""

    replaces_parameters = True

    def __init__(self, parts: Mapping[str, ParameterLoRA]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(dict(parts))
        self.changes = tuple(parts)

    @classmethod
    def of(cls, base: nn.Module, settings: Mapping[str, LayerSettings], scales: Sequence[float]) -> ModuleParameters:
        """Adapters for the named parameters of `base`, in the order of the module's own."""
        is_transposed = bool(getattr(base, "is_transposed", False))
        pairs = zip(settings.items(), scales, strict=True)
        return cls({key: ParameterLoRA(base.get_parameter(key), s, scale, is_transposed) for (key, s), scale in pairs})

    def part(self, key: str) -> Adapter:
        """The adapter of one parameter."""
        found = self.parts[key]
        assert isinstance(found, Adapter)
        return found

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Fill all parts."""
        for key in self.changes:
            self.part(key).reset_parameters(generator)

    def changed_parameters(self, base: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters with their updates."""
        return {key: part.added_to(values.get(key, base.get_parameter(key))) for key, part in self._items()}

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """The output as it is: the parameters were changed already."""
        return out

    def tensors(self) -> dict[str, Tensor]:
        """PEFT wraps a module once for each parameter: the first one's tensors lie the deepest."""
        deepest = len(self.changes) - 1
        return {
            "base_layer." * (deepest - place) + name: tensor
            for place, (_, part) in enumerate(self._items())
            for name, tensor in part.tensors().items()
        }

    def _items(self) -> Iterator[tuple[str, ParameterLoRA]]:
        for key, part in self.parts.items():
            assert isinstance(part, ParameterLoRA)
            yield key, part
