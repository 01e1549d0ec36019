"""LoRA-drop: a short survey finds the layers that matter; they keep their own LoRA, the others share one."""

from dataclasses import dataclass

from core.config import AdapterConfig, Checked, option
from core.errors import ConfigError
from core.methods.method import Method, methods


@dataclass(frozen=True)
class LoRADropOptions(Checked):
    """What only LoRA-drop has."""

    survey_share: float = option(
        0.1, "Share of the steps that find out which layers matter.", minimum=0.001, maximum=0.9
    )
    select: str = option(
        "threshold",
        "Keep the layers that make up a share of the whole importance, or a fixed number of them.",
        choices=("threshold", "top_n"),
    )
    threshold: float = option(0.9, "Share of the importance that the kept layers make up.", minimum=0.01, maximum=1.0)
    top_n: int = option(8, "How many are kept with 'top_n'.", minimum=1, maximum=100_000)
    scope: str = option(
        "module", "Judge every matrix by itself, or all matrices of a block together.", choices=("module", "layer")
    )
    shared: str = option(
        "train",
        "The other layers share one LoRA that trains (as in the paper), one that is frozen, or have none.",
        choices=("train", "frozen", "none"),
    )
    kept: tuple[str, ...] = option((), "Layers that the survey kept; training fills this in.")


@methods.register("lora_drop")
class LoRADrop(Method):
    """LoRA on the layers that need it."""

    title = "LoRA-drop"
    hint = "only where it matters"
    summary = "A short survey finds the layers that matter. They keep their own LoRA and the others share one."
    paper = "Zhou et al. 2024, arXiv 2402.07721"
    options = LoRADropOptions

    @classmethod
    def check(cls, config: AdapterConfig) -> None:
        """Layers that share one LoRA have one rank."""
        super().check(config)
        if config.rank_pattern or config.alpha_pattern:
            raise ConfigError("LoRA-drop's layers share one LoRA, so patterns do not fit.", "Use one rank and alpha.")

    @classmethod
    def check_steps(cls, config: AdapterConfig, total_steps: int) -> None:
        """There must be a step for the survey and one after it."""
        if total_steps < 2:
            raise ConfigError("LoRA-drop needs 2 steps or more: a survey, then training.", "Train for longer.")
