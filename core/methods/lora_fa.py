"""LoRA-FA: LoRA whose A stays as it was drawn."""

from dataclasses import dataclass

from core.config import AdapterConfig, Checked, option
from core.methods.method import LORA_SETTINGS, PLACES, Method, methods


@dataclass(frozen=True)
class LoRAFAOptions(Checked):
    """What only LoRA-FA has."""

    correction: str = option(
        "gradient",
        "Turn B's gradient so that a step comes closest to a full one (second version of the paper), or leave it.",
        choices=("gradient", "none"),
    )


@methods.register("lora_fa")
class LoRAFA(Method):
    """Half of LoRA trains, and a layer's input need not be kept."""

    title = "LoRA-FA"
    hint = "less memory, half of it trains"
    summary = "LoRA whose first matrix is frozen: fewer activations in memory, and somewhat less learning power."
    paper = "Zhang et al. 2023, arXiv 2308.03303"
    options = LoRAFAOptions
    uses = (LORA_SETTINGS | PLACES) - {"lora_dropout", "target_parameters"}
    reasons = {"lora_dropout": "its mask is as large as the input, and keeping it would undo the memory saved"}
    layers = frozenset({"linear", "conv1d"})

    @classmethod
    def layer_parameters(cls, config: AdapterConfig, r: int, d_in: int, d_out: int) -> int:
        """r out: only B trains."""
        return r * d_out
