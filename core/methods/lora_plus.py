"""LoRA+: LoRA whose B learns faster than its A."""

from dataclasses import dataclass

from core.config import Checked, option
from core.methods.method import Method, methods


@dataclass(frozen=True)
class LoRAPlusOptions(Checked):
    """What only LoRA+ has."""

    ratio: float = option(
        16.0, "How many times larger the learning rate of B is than that of A.", minimum=1.0, maximum=1024.0
    )


@methods.register("lora_plus")
class LoRAPlus(Method):
    """LoRA with two learning rates."""

    title = "LoRA+"
    hint = "B learns faster than A"
    summary = "LoRA whose second matrix learns faster than its first, which can take fewer steps."
    paper = "Hayou et al. 2024, arXiv 2402.12354"
    stores_pairs = True
    options = LoRAPlusOptions
    learning_rate_factor = 0.25
