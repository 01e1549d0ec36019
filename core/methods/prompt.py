"""Prompt tuning: trained positions before every text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.config import AdapterConfig, Checked, option
from core.methods.method import BASELINE, Method, methods, options_of, whole_parameters

if TYPE_CHECKING:
    from core.models import ModelInfo

MOST_TOKENS = 4096


@dataclass(frozen=True)
class PromptOptions(Checked):
    """What only prompt tuning has."""

    tokens: int = option(
        20, "Trained positions put before every text; each takes the place of a token.", minimum=1, maximum=MOST_TOKENS
    )
    init: str = option(
        "vocab",
        "Start from the embeddings of random real tokens, or from random numbers, which learn much more slowly.",
        choices=("vocab", "random"),
    )


class VirtualTokens(Method):
    """What prompt, prefix and P-tuning share: positions before the text, which no weight can take up."""

    group = BASELINE
    uses = frozenset({"modules_to_save"})
    merges = False
    unmergeable = "its trained positions stand before the text, and no weight can take them up"
    layers = frozenset({"embedding"})

    @classmethod
    def virtual_tokens(cls, config: AdapterConfig) -> int:
        """As many as the option says."""
        return int(options_of(config).tokens)

    @classmethod
    def check_layer(cls, config: AdapterConfig, path: str, d_in: int, d_out: int) -> None:
        """Every layer it goes on fits."""

    @classmethod
    def trainable_parameters(cls, info: ModelInfo, config: AdapterConfig) -> int:
        """Those of the positions, and `modules_to_save`."""
        return cls.own_parameters(info, config) + whole_parameters(info, config)

    @classmethod
    def own_parameters(cls, info: ModelInfo, config: AdapterConfig) -> int:
        """One vector of the model's width for each position: P d."""
        return cls.virtual_tokens(config) * embedding_width(info)


def embedding_width(info: ModelInfo) -> int:
    """Width of the token embedding, which a few models have narrower than their layers."""
    widths = [width for target in info.targets for count, width in target.shapes if count == info.vocab_size]
    return widths[0] if widths else info.hidden_size


@methods.register("prompt")
class Prompt(VirtualTokens):
    """Trained input embeddings."""

    title = "Prompt tuning"
    summary = "Trains a few input vectors before every text: the smallest file, at the cost of context."
    paper = "Lester et al. 2021, arXiv 2104.08691"
    options = PromptOptions
    learning_rate_factor = 10.0
