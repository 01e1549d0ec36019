"""Dynamic rank adaptation: LoRA whose rank falls while it trains."""

from dataclasses import dataclass

from core.config import AdapterConfig, Checked, option
from core.errors import ConfigError
from core.methods.method import Method, methods


@dataclass(frozen=True)
class DynamicRankOptions(Checked):
    """What only dynamic rank has. It starts at the setting `r`."""

    final_rank: int = option(
        0, "Rank that is left at the end. 0 leaves a quarter of the first one.", minimum=0, maximum=4096
    )
    schedule: str = option(
        "exp", "How the rank falls: exponentially, or by AdaLoRA's cubic curve.", choices=("exp", "cubic")
    )
    beta: float = option(
        0.0,
        "Speed of the exponential fall per step. 0 picks it so that the last 30 % of the steps have the final rank.",
        minimum=0.0,
        maximum=10.0,
    )
    scope: str = option(
        "per_module",
        "Every layer ends with the same rank, or the ranks go where they matter most.",
        choices=("per_module", "global"),
    )
    nested: bool = option(
        False, "Train a random lower rank in every step, so that any first ranks are usable alone (DyLoRA)."
    )


def final_rank(options: DynamicRankOptions, first: int) -> int:
    """The rank a layer ends with that starts with rank `first`."""
    return min(options.final_rank or max(1, first // 4), first)


@methods.register("dynamic_rank")
class DynamicRank(Method):
    """LoRA that begins wide and ends narrow."""

    title = "Dynamic Rank"
    hint = "rank falls while training"
    summary = "LoRA that starts with a high rank and drops the least important directions on the way."
    paper = "Valipour et al. 2022, arXiv 2210.07558"
    stores_pairs = True
    options = DynamicRankOptions
    suggested = {"r": 16}

    @classmethod
    def check(cls, config: AdapterConfig) -> None:
        """The final rank is below the first one, and nested training has one rank for all layers."""
        super().check(config)
        options = DynamicRankOptions(**config.method_options)
        if options.final_rank > config.r:
            raise ConfigError(
                f"final_rank {options.final_rank} is above the rank {config.r} it starts with.", "Lower final_rank."
            )
        if options.nested and options.scope == "global":
            raise ConfigError("nested and scope 'global' exclude each other.", "Pick scope 'per_module'.")
