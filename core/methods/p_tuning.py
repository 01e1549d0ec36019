"""P-tuning: trained positions that a small recurrent network makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.config import AdapterConfig, Checked, option
from core.methods.method import methods
from core.methods.prompt import MOST_TOKENS, VirtualTokens, embedding_width

if TYPE_CHECKING:
    from core.models import ModelInfo


@dataclass(frozen=True)
class PTuningOptions(Checked):
    """What only P-tuning has."""

    tokens: int = option(
        10, "Trained positions put before every text; each takes the place of a token.", minimum=1, maximum=MOST_TOKENS
    )
    hidden: int = option(
        0, "Width of the LSTM in each direction. 0 takes half of the model's.", minimum=0, maximum=65_536
    )


@methods.register("p_tuning")
class PTuning(VirtualTokens):
    """Prompt tuning through an encoder."""

    title = "P-tuning"
    summary = "Prompt tuning whose vectors come out of a small LSTM, which ties them together while they train."
    paper = "Liu et al. 2021, arXiv 2103.10385"
    options = PTuningOptions
    learning_rate_factor = 2.0

    @classmethod
    def own_parameters(cls, info: ModelInfo, config: AdapterConfig) -> int:
        """Inputs P d; LSTM, 2 layers of 2 directions of 4 gates; and the two layers of the MLP."""
        d = embedding_width(info)
        h = hidden_width(PTuningOptions(**config.method_options), d)
        lstm = sum(2 * 4 * h * (d_in + h + 2) for d_in in (d, 2 * h))
        return cls.virtual_tokens(config) * d + lstm + 2 * h * (2 * h + 1) + d * (2 * h + 1)


def hidden_width(options: PTuningOptions, d: int) -> int:
    """Width of each direction of the LSTM on a model of width `d`."""
    return options.hidden or max(1, d // 2)
