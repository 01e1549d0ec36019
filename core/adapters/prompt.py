"""Prompt tuning: P trained vectors in place of the embeddings of P virtual tokens (Lester et al. 2021, section 2).

A virtual token is an ordinary position of the sequence with a negative id (`core.prompt`), so that positions, padding,
the cache and the loss treat it like any other. The vectors are what the embedding gives out, after any factor of its
own (Gemma), and they are float32 until they enter the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from core.adapters.base import Adapter, LayerSettings, Places, adapters
from core.adapters.targets import find_saved, unwrapped
from core.config import AdapterConfig
from core.errors import AdapterError, ConfigError


class VirtualEmbedding(Adapter):
    """What a method with virtual tokens puts on the input embedding."""

    changes = ()
    exact_at_start = False
    runs_last = True

    def __init__(self, base: nn.Embedding, settings: LayerSettings) -> None:
        super().__init__()
        self.count = int(settings.options.tokens)
        self.width = base.embedding_dim

    @property
    def virtual_tokens(self) -> int:
        """P."""
        return self.count

    @classmethod
    def places(cls, model: nn.Module, modules: Mapping[str, nn.Module], config: AdapterConfig) -> Places:
        """The input embedding."""
        return Places(targets=[input_embedding(model, modules)], saved=find_saved(modules, config))

    @classmethod
    def from_base(cls, base: nn.Module, settings: LayerSettings) -> Adapter:
        """Make the adapter of the input embedding."""
        if not isinstance(base, nn.Embedding):
            raise AdapterError(f"A {type(base).__name__} takes no token ids.", "Pick another model.")
        return cls(base, settings)

    def vectors(self) -> Tensor:
        """The embeddings of the virtual tokens, (P, d)."""
        raise NotImplementedError

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """`out` (B, T, d) with vector p where the id in x (B, T) is -1 - p."""
        found = virtual_positions(x, self.count)
        if found is None:
            return out
        is_virtual, index = found
        return torch.where(is_virtual.unsqueeze(-1), self.vectors().to(out.dtype)[index], out)

    def weight_decays(self, parameter: nn.Parameter) -> bool:
        """Positions are not pulled towards 0."""
        return False


@adapters.register("prompt")
class Prompt(VirtualEmbedding):
    """The vectors themselves."""

    peft_type = "PROMPT"
    keys = {"prompt": "prompt.weight"}

    def __init__(self, base: nn.Embedding, settings: LayerSettings) -> None:
        super().__init__(base, settings)
        self.init = settings.options.init
        self._table: tuple[nn.Embedding, ...] = (base,)  # in a tuple: not a part of this module
        self.prompt = nn.Parameter(torch.empty(self.count, self.width, device=settings.device, dtype=settings.dtype))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Embeddings of random tokens of the vocabulary, or normal numbers spread as widely as these."""
        (table,) = self._table
        ids = torch.randint(table.num_embeddings, (self.count,), generator=generator)
        some = table(ids.to(table.weight.device)).to(self.prompt.dtype)
        if self.init == "vocab":
            self.prompt.copy_(some)
            return
        start = torch.empty(self.prompt.shape, dtype=self.prompt.dtype).normal_(generator=generator)
        self.prompt.copy_(start.to(some.device) * some.std())

    def vectors(self) -> Tensor:
        """The trained vectors."""
        return self.prompt


def virtual_positions(ids: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
    """Where ids are virtual, and which of the `count` virtual tokens each is, both like ids; None when none is.

    Raises AdapterError for a virtual token that the adapter does not have.
    """
    lowest = int(ids.min()) if ids.numel() else 0
    if lowest >= 0:
        return None
    if lowest < -count:
        raise AdapterError(f"The text begins with {-lowest} virtual tokens; the adapter has {count}.", "Take its own.")
    return ids < 0, (-1 - ids).clamp(min=0)


def input_embedding(model: Any, modules: Mapping[str, nn.Module]) -> str:
    """The path of the embedding that reads the text's tokens; of an encoder-decoder the encoder's."""
    is_encoder_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    owner = model.get_encoder() if is_encoder_decoder else model
    layer = unwrapped(owner.get_input_embeddings()) if hasattr(owner, "get_input_embeddings") else None
    path = next((path for path, module in modules.items() if module is layer), None)
    if path is None:
        raise ConfigError("This model has no embedding that virtual tokens could go through.", "Pick another method.")
    return path
