"""VeLoRA: LoRA whose stored inputs are compressed to one number per group."""

from dataclasses import dataclass

from core.config import AdapterConfig, Checked, option
from core.errors import ConfigError
from core.methods.method import LORA_SETTINGS, PLACES, Method, methods


@dataclass(frozen=True)
class VeLoRAOptions(Checked):
    """What only VeLoRA has."""

    groups: int = option(
        0, "Numbers kept of each token's input. 0 picks 32, or what divides the layer.", minimum=0, maximum=65_536
    )
    velora_scale: float = option(1.0, "Multiplies the gradient of A.", minimum=1e-6, maximum=1000.0)
    direction: str = option(
        "first_batch",
        "What the groups are compared with: their mean in the first batch, in every batch, or a random direction.",
        choices=("first_batch", "every_batch", "random"),
    )


def groups_of(options: VeLoRAOptions, d_in: int) -> int:
    """Groups of a layer with `d_in` inputs: the chosen number, or the largest divisor up to 32."""
    return options.groups or max(n for n in range(1, 33) if d_in % n == 0)


@methods.register("velora")
class VeLoRA(Method):
    """LoRA with small activations and an approximate gradient."""

    title = "VeLoRA"
    hint = "compressed activations"
    summary = "LoRA that keeps a compressed copy of each input, for less memory and a rougher gradient."
    paper = "Miles et al. 2024, arXiv 2405.17991"
    options = VeLoRAOptions
    uses = (LORA_SETTINGS | PLACES) - {"lora_dropout", "target_parameters"}
    reasons = {"lora_dropout": "its mask is as large as the input, and keeping it would undo the memory saved"}
    layers = frozenset({"linear", "conv1d"})

    @classmethod
    def check_layer(cls, config: AdapterConfig, path: str, d_in: int, d_out: int) -> None:
        """The groups must divide the input."""
        super().check_layer(config, path, d_in, d_out)
        groups = groups_of(VeLoRAOptions(**config.method_options), d_in)
        if d_in % groups:
            raise ConfigError(
                f"{groups} groups do not divide the {d_in} inputs of {path!r}.", "Pick a divisor, or 0 to choose one."
            )
