"""What every adapter method is: the tensors of one adapter on one module, and how they change output and weight.

A further method is one file in this folder with a subclass of `Adapter` under `@adapters.register("name")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from core.adapters.rule import TrainingRule
from core.config import AdapterConfig
from core.conv1d import is_conv1d
from core.errors import AdapterError, ConfigError
from core.quantize.linear import QuantizedLinear
from core.registry import Registry

ALL_ROWS = slice(None)


@dataclass(frozen=True)
class Places:
    """Where a method goes on a model, by module path."""

    targets: list[str] = field(default_factory=list)  # get an adapter
    saved: list[str] = field(default_factory=list)  # are trained whole, each on its own
    parts: dict[str, list[str]] = field(default_factory=dict)  # parameters trained whole; tied ones stay tied
    parameters: dict[str, list[str]] = field(default_factory=dict)  # get an adapter of their own


@dataclass(frozen=True)
class LayerSettings:
    """The settings of one adapter on one module, after `rank_pattern` and `alpha_pattern`."""

    r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool
    device: torch.device
    dtype: torch.dtype
    options: Any = None  # the method's own options dataclass
    shared: Any = field(default=None, compare=False)  # what the method's `shared()` made for the whole model


class Adapter(nn.Module):
    """One adapter on one module; its deltas add up with those of other active adapters.

    A method says which of its tensors are stored under which name (`keys`), and gives `from_base`, `reset_parameters`,
    `forward` and `delta_weight`. One whose update does not simply add to the weight overrides `merge_block`; one that
    goes elsewhere than on `target_modules` overrides `places`; one that does more in a training step than follow the
    gradient has a `rule`.
    """

    peft_type: ClassVar[str] = "LORA"
    keys: ClassVar[Mapping[str, str]] = {}  # attribute -> PEFT's name of the tensor below the module, or whole name
    peft_fields: ClassVar[Mapping[str, Any]] = {}  # what tells this method apart in adapter_config.json
    rule: ClassVar[type[TrainingRule]] = TrainingRule
    training_state: ClassVar[tuple[str, ...]] = ()  # buffers that only training needs, kept in its checkpoints
    changes: tuple[str, ...] = ("weight",)  # the parameters of the module that its delta goes into
    replaces_parameters: ClassVar[bool] = False
    is_additive: ClassVar[bool] = True  # its change adds to those of other adapters on the same module
    exact_at_start: ClassVar[bool] = True  # a fresh adapter leaves the output exactly as it was
    runs_last: ClassVar[bool] = False  # it replaces outputs, so what other active adapters add comes before
    makes_factors: ClassVar[bool] = False  # its live factors are no parameters, but made of them
    is_blockwise: bool = True  # a block of rows of the weight can be merged without the others

    @classmethod
    def places(cls, model: nn.Module, modules: Mapping[str, nn.Module], config: AdapterConfig) -> Places:
        """Where the method goes on a model, whose own modules come by path; ConfigError when there is no place."""
        from core.adapters.targets import find_places  # it knows the wrapper, which knows this class

        return find_places(model, modules, config)

    @classmethod
    def from_base(cls, base: nn.Module, settings: LayerSettings) -> Adapter:
        """Make the adapter of a module, its tensors not filled yet; AdapterError when the method cannot adapt it."""
        raise NotImplementedError

    @classmethod
    def on_parameters(cls, base: nn.Module, settings: Mapping[str, LayerSettings]) -> Adapter:
        """Make the adapter of single parameters of a module, by name; ConfigError when the method has none."""
        raise ConfigError("This method cannot adapt single parameters.", "Leave target_parameters empty.")

    def part(self, key: str) -> Adapter:
        """What changes the parameter `key`, one of `changes`."""
        return self

    def changed_parameters(self, base: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters that the module is to run with in place of `values`, or else of its own.

        Called only when `replaces_parameters`; most methods add to the output of the module instead.
        """
        return {}

    @classmethod
    def shared(cls, bases: Mapping[str, nn.Module], config: AdapterConfig, generator: torch.Generator | None) -> Any:
        """Make what all adapters of one name share, such as VeRA's projections; most methods share nothing."""
        return None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Fill the tensors with their start values."""
        raise NotImplementedError

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """Return `out`, the output of `base` on input `x`, changed by this adapter."""
        raise NotImplementedError

    def delta_weight(self, rows: slice = ALL_ROWS, dtype: torch.dtype = torch.float64) -> Tensor:
        """The dense change of the weight, in the weight's own layout, for a slice of its rows."""
        raise AdapterError(f"{type(self).__name__} cannot be merged into a weight.", "Keep it as an adapter.")

    def merge_block(self, block: Tensor, rows: slice) -> Tensor:
        """Return a block of weight rows, already in float64, with this adapter in it."""
        return block + self.delta_weight(rows, block.dtype)

    def lora_factors(self) -> tuple[Tensor, Tensor] | None:
        """(A (r, in), B (out, r)) in float64 with the change as B A (out, in), scale folded in; None without such."""
        return None

    def live_factors(self) -> tuple[Tensor, Tensor] | None:
        """A (r, in) and B (out, r) of the s drop(x) A^T B^T that it adds, with their gradients; None where it is more.

        Fused layers (`core.ops`) compute that themselves; where it `makes_factors`, they ask at every call.
        """
        return None

    def weight_factors(self) -> tuple[Tensor, Tensor] | None:
        """The same change as L (rows, r) times R (r, columns) in the weight's own layout; None without such."""
        factors = self.lora_factors()
        if factors is None:
            return None
        a, b = factors
        return (a.T, b.T) if getattr(self, "is_transposed", False) else (b, a)

    @property
    def virtual_tokens(self) -> int:
        """Positions before the prompt that this adapter fills in; they come as ids -1, -2, ... (`core.prompt`)."""
        return 0

    @classmethod
    def baked_config(cls, config: AdapterConfig) -> AdapterConfig | None:
        """The settings of the same adapter with what makes its tensors replaced by these; None when nothing does."""
        return None

    def baked(self) -> dict[str, Tensor]:
        """The tensors of that adapter, by their stored names."""
        return self.tensors()

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's tensors by their stored names."""
        return {key: getattr(self, attribute) for attribute, key in self.keys.items()}

    def trainable(self) -> list[nn.Parameter]:
        """The parameters an optimizer may change."""
        own = [parameter for parameter in self._parameters.values() if parameter is not None]
        return list(self.parameters()) if self._modules else own  # `parameters` is slow, and switching waits for it

    def lr_scale(self, parameter: nn.Parameter) -> float:
        """The learning rate of one of its parameters, in that of the run."""
        return 1.0

    def weight_decays(self, parameter: nn.Parameter) -> bool:
        """Whether weight decay pulls a parameter towards 0: matrices, not vectors."""
        return parameter.ndim >= 2


adapters: Registry[type[Adapter]] = Registry("adapter method")


def is_transposed(base: nn.Module) -> bool:
    """True for modules whose weight is (in, out): GPT-2's Conv1D and embeddings (vocabulary, width)."""
    return isinstance(base, nn.Embedding) or is_conv1d(base)


def layer_kind(base: nn.Module) -> str:
    """linear, conv1d or embedding, as `Method.layers` lists them."""
    if isinstance(base, nn.Embedding):
        return "embedding"
    was_conv1d = isinstance(base, QuantizedLinear) and base.is_conv1d
    return "conv1d" if was_conv1d or is_conv1d(base) else "linear"


def layer_size(base: nn.Module) -> tuple[int, int]:
    """Input and output features of a Linear, Conv1D or Embedding, also of a quantised one."""
    if isinstance(base, (nn.Linear, QuantizedLinear)):
        return base.in_features, base.out_features
    if isinstance(base, nn.Embedding):
        return base.num_embeddings, base.embedding_dim
    weight = base.get_parameter("weight")
    return int(weight.shape[0]), int(weight.shape[1])


def weight_like(base: nn.Module) -> Tensor:
    """A tensor on the device, and of the dtype, of a module's weight: the weight itself, unless it is quantised."""
    return base.get_buffer("like") if isinstance(base, QuantizedLinear) else base.get_parameter("weight")


def weight_value(base: nn.Module) -> Tensor:
    """A module's frozen weight in its own layout; of a quantised one its value, (out, in), worked out at every call."""
    return base.weight if isinstance(base, QuantizedLinear) else base.get_parameter("weight")
