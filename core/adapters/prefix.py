"""Prefix tuning: trained keys and values for P positions before the text, in every layer (Li & Liang 2021, section 4).

The positions are virtual tokens (`core.prompt`). An adapter on the embedding notes where they are, and adapters on the
layers that make keys and values put the trained ones there; what the model computes at these positions besides is read
by nobody. Where a model turns or normalises keys after that layer (RoPE, a norm of keys), it does so to the trained
ones too. With `projection` they are made by a tanh network from one trained vector a position (section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.adapters.base import Adapter, LayerSettings, Places, adapters, layer_kind, layer_size
from core.adapters.prompt import VirtualEmbedding, input_embedding, virtual_positions
from core.adapters.targets import find_saved
from core.config import AdapterConfig
from core.errors import AdapterError
from core.methods.prefix import PrefixOptions, key_value_paths

START = 0.02  # spread of keys and values that are trained directly


class Prefixes:
    """What the adapters of one prefix share: where the virtual tokens of the batch are, and what the network made."""

    def __init__(self, width: int) -> None:
        self.width = width  # of all keys and values together
        self.taken = 0
        self.positions: tuple[Tensor, Tensor] | None = None  # both (B, T): is it virtual, and which one
        self.made: Tensor | None = None  # (P, width), with a projection

    def __getstate__(self) -> dict[str, Any]:
        """Copies of a model start without the batch that this one last saw."""
        return {"width": self.width, "taken": self.taken, "positions": None, "made": None}

    def take(self, width: int) -> slice:
        """The columns of `made` that the next layer gets."""
        self.taken += width
        return slice(self.taken - width, self.taken)


@adapters.register("prefix")
class Prefix(VirtualEmbedding):
    """The part on the embedding: it finds the virtual tokens, and holds the network if there is one."""

    peft_type = "PREFIX"

    def __init__(self, base: nn.Embedding, settings: LayerSettings) -> None:
        super().__init__(base, settings)
        self.shared_state: Prefixes = settings.shared
        self.network: PrefixNetwork | None = None
        if settings.options.projection:
            self.network = PrefixNetwork(self.count, self.width, self.shared_state.width, settings)

    @classmethod
    def places(cls, model: nn.Module, modules: Mapping[str, nn.Module], config: AdapterConfig) -> Places:
        """The input embedding, then the layers that make keys and values."""
        layers = key_value_paths(path for path, module in modules.items() if not list(module.children()))
        return Places(targets=[input_embedding(model, modules), *layers], saved=find_saved(modules, config))

    @classmethod
    def shared(cls, bases: Mapping[str, nn.Module], config: AdapterConfig, generator: torch.Generator | None) -> Any:
        """The note that the embedding's adapter writes and the others read."""
        layers = [base for base in bases.values() if not isinstance(base, nn.Embedding)]
        return Prefixes(sum(columns.stop - columns.start for columns in map(key_value_columns, layers)))

    @classmethod
    def from_base(cls, base: nn.Module, settings: LayerSettings) -> Adapter:
        """The part for the embedding, or that for a layer of keys and values."""
        return cls(base, settings) if isinstance(base, nn.Embedding) else PrefixKeyValue(base, settings)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Fill the network."""
        if self.network is not None:
            self.network.reset_parameters(generator)

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """`out` as it is; the virtual tokens of x (B, T) are noted for the layers to come."""
        state = self.shared_state
        state.positions = virtual_positions(x, self.count)
        if self.network is not None:
            state.made = None if state.positions is None else self.network()
        return out

    def tensors(self) -> dict[str, Tensor]:
        """Those of the network."""
        return {f"prefix_{name}": parameter for name, parameter in self.named_parameters()}

    @classmethod
    def baked_config(cls, config: AdapterConfig) -> AdapterConfig | None:
        """Without the projection; None when there is none."""
        options = PrefixOptions(**config.method_options)
        if not options.projection:
            return None
        return replace(config, method_options={"tokens": options.tokens})

    def baked(self) -> dict[str, Tensor]:
        """Nothing: the keys and values go to their layers."""
        self.shared_state.made = None if self.network is None else self.network()
        return {}


class PrefixKeyValue(Adapter):
    """The trained keys, values, or both, of one layer."""

    peft_type = "PREFIX"
    changes = ()
    exact_at_start = False
    runs_last = True

    def __init__(self, base: nn.Module, settings: LayerSettings) -> None:
        super().__init__()
        self.shared_state: Prefixes = settings.shared
        self.columns = key_value_columns(base)  # of the layer's output
        width = self.columns.stop - self.columns.start
        self.own_part = self.shared_state.take(width)
        self.prefix: nn.Parameter | None = None
        if not settings.options.projection:
            shape = (int(settings.options.tokens), width)
            self.prefix = nn.Parameter(torch.empty(shape, device=settings.device, dtype=settings.dtype))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Small normal numbers."""
        if self.prefix is not None:
            start = torch.empty(self.prefix.shape, dtype=self.prefix.dtype)
            self.prefix.copy_(start.normal_(0, START, generator=generator))

    def values(self) -> Tensor:
        """The trained outputs, (P, columns)."""
        if self.prefix is not None:
            return self.prefix
        made = self.shared_state.made
        if made is None:
            raise AdapterError("A prefix was used before the text was read.", "Run the whole model.")
        return made[:, self.own_part]

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """`out` (B, T, d) with the trained keys and values at the virtual tokens."""
        positions = self.shared_state.positions
        if positions is None or positions[0].shape != out.shape[:2]:  # another sequence than the text: a decoder's
            return out
        is_virtual, index = positions
        first, last = self.columns.start, self.columns.stop
        changed = torch.where(is_virtual.unsqueeze(-1), self.values().to(out.dtype)[index], out[..., first:last])
        return changed if last - first == out.shape[-1] else torch.cat([out[..., :first], changed], dim=-1)

    def tensors(self) -> dict[str, Tensor]:
        """The trained values, unless the network on the embedding makes them."""
        return {} if self.prefix is None else {"prefix.weight": self.prefix}

    def weight_decays(self, parameter: nn.Parameter) -> bool:
        """Keys and values are not pulled towards 0."""
        return False

    def baked(self) -> dict[str, Tensor]:
        """What the network makes for this layer."""
        return {"prefix.weight": self.values()}


class PrefixNetwork(nn.Module):
    """One trained vector a position, and two layers from it to the keys and values of all layers of the model."""

    def __init__(self, count: int, d: int, width: int, settings: LayerSettings) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype}
        self.inputs = nn.Parameter(torch.empty(count, d, **where))
        self.inner = nn.Linear(d, settings.options.hidden, **where)
        self.outer = nn.Linear(settings.options.hidden, width, **where)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Inputs standard normal, layers uniform in +-1/sqrt(in), drawn on the CPU."""
        self.inputs.copy_(torch.empty(self.inputs.shape).normal_(generator=generator))
        for layer in (self.inner, self.outer):
            bound = 1 / math.sqrt(layer.in_features)
            for parameter in layer.parameters():
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))

    def forward(self) -> Tensor:
        """Keys and values, (P, width)."""
        made: Tensor = self.outer(F.tanh(self.inner(self.inputs)))
        return made


def key_value_columns(base: nn.Module) -> slice:
    """Which outputs of a layer are keys and values: all, or of GPT-2's fused layer the last two thirds."""
    d_in, d_out = layer_size(base)
    return slice(d_in if layer_kind(base) == "conv1d" else 0, d_out)
