"""LoRA+: LoRA of which B learns `ratio` times faster than A (Hayou et al. 2024, section 4)."""

from __future__ import annotations

from torch import nn

from core.adapters.base import adapters
from core.adapters.lora import LoRA, LoRAEmbedding


@adapters.register("lora_plus")
class LoRAPlus(LoRA):
    """LoRA with a learning rate for each of its matrices."""

    @classmethod
    def on_embedding(cls) -> type[LoRA]:
        """LoRA+ on an embedding."""
        return LoRAPlusEmbedding

    def lr_scale(self, parameter: nn.Parameter) -> float:
        """`ratio` for B, 1 for A."""
        return float(self.options.ratio) if parameter is self.lora_B else 1.0


class LoRAPlusEmbedding(LoRAEmbedding):
    """LoRA+ on an embedding, where it is A that starts at zero and learns faster."""

    def lr_scale(self, parameter: nn.Parameter) -> float:
        """`ratio` for A, 1 for B."""
        return float(self.options.ratio) if parameter is self.lora_A else 1.0
