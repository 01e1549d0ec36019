"""rsLoRA: LoRA with s = alpha / sqrt(r), so that the update keeps its size as the rank grows (Kalajdzievski 2023)."""

from __future__ import annotations

import math

from core.adapters.base import LayerSettings, adapters
from core.adapters.lora import LoRA


@adapters.register("rslora")
class RsLoRA(LoRA):
    """LoRA whose output has the same spread at every rank."""

    peft_fields = {"use_rslora": True}

    @classmethod
    def scaling(cls, settings: LayerSettings) -> float:
        """alpha / sqrt(r)."""
        return settings.lora_alpha / math.sqrt(settings.r)
