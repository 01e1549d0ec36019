"""What stands in for the forward of a module while the fast path runs; each is itself the judge of every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from core.adapters.host import AdaptedModule
from core.mode import all_modules
from core.ops.decoder_layer import Again, FusedLayer
from core.ops.factors import make_ahead
from core.ops.group import Group
from core.ops.normed_linear import normed_linear
from core.ops.precision import compute_dtype
from core.ops.recognition import UnfitError, read_layer, read_projection
from core.ops.rms_norm import Norm, rms_norm

Keeping = Callable[[Tensor], AbstractContextManager[Any]]


class LayerStandIn:
    """A decoder layer's fused form, read anew whenever other adapters are active on it or its mode has changed."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.original = layer, layer.forward
        self.leads: Sequence[Group] = ()  # whose factors this layer, the first of some, has made for all
        self.refresh()
        self.give_up()

    def give_up(self, again: Again = Again.NOTHING, keeps_random: bool = False, keeping: Keeping = nullcontext) -> None:
        """Compute this again backward, and what is kept in the context that `keeping` makes of the input."""
        self.again, self.keeps_random, self.keeping = again, keeps_random, keeping

    def refresh(self) -> None:
        """Read the layer as it is now."""
        modules = all_modules(self.layer)
        self.hosts = [module for module in modules if isinstance(module, AdaptedModule)]
        self.seen, self.state = _seen(modules), self._state()
        self.fused: FusedLayer | None = None
        self.reason = ""
        try:
            self.fused = read_layer(self.layer)
        except UnfitError as unfit:
            self.reason = str(unfit)

    def is_current(self) -> bool:
        """Whether the layer is what was read: the same parts, parameters, adapters and hooks."""
        return self.state == self._state() and self.seen == _seen(all_modules(self.layer))

    def _state(self) -> list[Any]:
        return [(host.active, host.rows is None, bool(host.originals), host.training) for host in self.hosts]

    def __call__(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> Any:
        """The layer's output; its own forward answers with a cache, under autocast, and where nothing is fused."""
        if self._state() != self.state:
            self.refresh()
        is_autocast = torch.is_autocast_enabled(hidden_states.device.type)
        if self.fused is None or past_key_values is not None or position_embeddings is None or is_autocast:
            return self.original(
                hidden_states, attention_mask=attention_mask, position_embeddings=position_embeddings,
                past_key_values=past_key_values, **options,
            )  # fmt: skip
        if self.leads:
            make_ahead(self.leads, compute_dtype(hidden_states))
        given = hidden_states, position_embeddings, attention_mask, self.again, self.keeps_random
        with self.keeping(hidden_states):
            return self.fused(*given, **options)


def _seen(modules: list[nn.Module]) -> tuple[Any, ...]:
    """What a fused form goes by, beside which adapters are active: compared instead of reading the layer again."""
    parameters = [parameter for module in modules for parameter in module._parameters.values() if parameter is not None]
    watched = [bool(each._forward_hooks or each._forward_pre_hooks or each._backward_hooks or each._backward_pre_hooks)
               for each in modules]  # fmt: skip
    return modules, [id(each) for each in parameters], [each.requires_grad for each in parameters], watched


class NormStandIn:
    """The norm behind the last layer, in one pass each way."""

    def __init__(self, module: nn.Module, norm: Norm) -> None:
        self.original, self.norm = module.forward, norm

    def __call__(self, x: Tensor) -> Any:
        """The normed states (..., D); where formats are mixed, the model's own answers."""
        if x.dtype != self.norm.weight.dtype or torch.is_autocast_enabled(x.device.type):
            return self.original(x)
        return rms_norm(x, self.norm)


class OutputStandIn:
    """The output layer where its own products take longer than ours: it is a fifth of a small model's work."""

    def __init__(self, output: nn.Module) -> None:
        self.output, self.original = output, output.forward

    def __call__(self, x: Tensor) -> Any:
        """Logits (..., V), in the wider format."""
        try:
            group = Group(read_projection(self.output))
        except UnfitError:
            return self.original(x)
        return normed_linear(x, None, group, compute_dtype(x))[0]
