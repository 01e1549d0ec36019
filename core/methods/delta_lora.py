"""Delta-LoRA: the frozen weight moves along with its low-rank update."""

from dataclasses import dataclass

from core.config import AdapterConfig, Checked, option
from core.errors import ConfigError
from core.methods.method import LORA_SETTINGS, PLACES, Method, methods


@dataclass(frozen=True)
class DeltaLoRAOptions(Checked):
    """What only Delta-LoRA has."""

    delta_scale: float = option(
        2.0, "How much further the weight itself moves than its update (lambda).", minimum=0.0, maximum=100.0
    )
    start_step: int = option(
        0, "Steps of plain LoRA before the weight begins to move (K).", minimum=0, maximum=10_000_000
    )
    mode: str = option(
        "functional",
        "Keep the weight frozen and add its movement to the output, or really change it; both give the same model.",
        choices=("functional", "mutate"),
    )


@methods.register("delta_lora")
class DeltaLoRA(Method):
    """LoRA whose weight follows."""

    title = "Delta-LoRA"
    hint = "the weight follows"
    summary = (
        "LoRA that also moves the weight by each change of B A. From the first step on, it is LoRA at a higher alpha."
    )
    paper = "Zi et al. 2023, arXiv 2309.02411"
    options = DeltaLoRAOptions
    uses = (LORA_SETTINGS | PLACES) - {"lora_dropout", "target_parameters"}
    reasons = {"lora_dropout": "the weight would follow a product that dropout never showed it"}
    layers = frozenset({"linear", "conv1d"})
    learning_rate_factor = 0.5

    @classmethod
    def check_steps(cls, config: AdapterConfig, total_steps: int) -> None:
        """The weight must begin to move within the run."""
        start = DeltaLoRAOptions(**config.method_options).start_step
        if start >= total_steps:
            raise ConfigError(
                f"start_step is {start}, and the run has {total_steps} steps.", f"Set it below {total_steps}."
            )
