"""What stands in for the forward of a module while the fast path runs; each is itself the judge of every call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core.adapters.host import AdaptedModule
from core.mode import all_modules
from core.ops.decoder_layer import FusedLayer
from core.ops.group import Group
from core.ops.normed_linear import normed_linear
from core.ops.precision import compute_dtype
from core.ops.recognition import UnfitError, read_layer, read_projection


class LayerStandIn:
    """A decoder layer's fused form, read anew whenever other adapters are active on it or its mode has changed."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.original = layer, layer.forward
        self.hosts = [module for module in all_modules(layer) if isinstance(module, AdaptedModule)]
        self.refresh()

    def refresh(self) -> None:
        """Read the layer as it is now."""
        self.state = self._state()
        self.fused: FusedLayer | None = None
        self.reason = ""
        try:
            self.fused = read_layer(self.layer)
        except UnfitError as unfit:
            self.reason = str(unfit)

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
        return self.fused(hidden_states, position_embeddings, attention_mask, **options)


class OutputStandIn:
    """The output layer where 16-bit products are emulated: it is a fifth of a small model's work."""

    def __init__(self, output: nn.Module) -> None:
        self.output, self.original = output, output.forward

    def __call__(self, x: Tensor) -> Any:
        """Logits (..., V), in the wider format."""
        try:
            group = Group(read_projection(self.output))
        except UnfitError:
            return self.original(x)
        return normed_linear(x, None, group, compute_dtype(x))[0]
