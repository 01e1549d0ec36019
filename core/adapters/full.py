"""Full, partial and bias-only fine-tuning: no adapter, but trained copies of the model's own parameters.

A copy stands in for the original while its adapter is active (`core.adapters.host.Replacement`), so that these can be
switched, removed, merged and saved like any adapter. Parameters that the base ties have one copy and stay tied.

The base is kept beside the copies, also when both are float32: it is what removing the adapter gives back. Fully
fine-tuning N parameters so takes N times 2 or 4 bytes for the base and 16 for copy, gradient and AdamW's moments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from torch import Tensor, nn

from core.adapters.base import Adapter, LayerSettings, Places, adapters
from core.adapters.targets import find_saved
from core.config import AdapterConfig
from core.errors import AdapterError, ConfigError
from core.methods.bitfit import chosen_biases
from core.methods.partial import chosen_part, with_saved
from core.quantize.linear import QuantizedLinear


class OwnWeights(Adapter):
    """A method that trains parameters of the base and adds none; subclasses say which."""

    @classmethod
    def chosen(cls, shapes: Mapping[str, tuple[int, ...]], tied: Collection[str], config: AdapterConfig) -> list[str]:
        """The parameters that train, by name; `tied` are those that are one with others."""
        raise NotImplementedError

    @classmethod
    def places(cls, model: nn.Module, modules: Mapping[str, nn.Module], config: AdapterConfig) -> Places:
        """The modules that own the chosen parameters; ConfigError when one of these is quantised."""
        find_saved(modules, config)  # complains about names that match nothing
        tensors = dict(_own_tensors(modules))
        uses = Counter(id(tensor) for tensor in tensors.values())
        tied = {name for name, tensor in tensors.items() if uses[id(tensor)] > 1}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        parts: dict[str, list[str]] = {}
        for name in with_saved(cls.chosen(shapes, tied, config), shapes, config):
            path, _, key = name.rpartition(".")
            if not isinstance(tensors[name], nn.Parameter):
                raise ConfigError(
                    f"{path!r} is quantised, and its weight cannot train.", "Load the base in 16 or 32 bits."
                )
            parts.setdefault(path, []).append(key)
        return Places(parts=parts)

    @classmethod
    def from_base(cls, base: nn.Module, settings: LayerSettings) -> Adapter:
        """Never called, since there are no targets."""
        raise AdapterError(f"{cls.__name__} puts no adapter on a layer.", "Pick another method.")


@adapters.register("full")
class Full(OwnWeights):
    """Every parameter."""

    peft_type = "FULL"

    @classmethod
    def chosen(cls, shapes: Mapping[str, tuple[int, ...]], tied: Collection[str], config: AdapterConfig) -> list[str]:
        """All of them."""
        return list(shapes)


@adapters.register("partial")
class Partial(OwnWeights):
    """The last blocks, the norms or the head."""

    peft_type = "PARTIAL"

    @classmethod
    def chosen(cls, shapes: Mapping[str, tuple[int, ...]], tied: Collection[str], config: AdapterConfig) -> list[str]:
        """Those of the part that is asked for."""
        return chosen_part(shapes, tied, config)


@adapters.register("bitfit")
class BitFit(OwnWeights):
    """The biases."""

    peft_type = "BITFIT"

    @classmethod
    def chosen(cls, shapes: Mapping[str, tuple[int, ...]], tied: Collection[str], config: AdapterConfig) -> list[str]:
        """All biases; ConfigError when there are none."""
        return chosen_biases(shapes)


def _own_tensors(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter by its full name, tied ones under each of theirs; of a quantised weight a stand-in."""
    for path, module in modules.items():
        for key, parameter in module.named_parameters(recurse=False):
            yield f"{path}.{key}", parameter
        if isinstance(module, QuantizedLinear):
            yield f"{path}.weight", module.get_buffer("like").expand(0)
