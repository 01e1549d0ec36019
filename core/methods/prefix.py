"""Prefix tuning: trained keys and values in every attention layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.config import AdapterConfig, Checked, option
from core.errors import ConfigError
from core.methods.method import methods
from core.methods.prompt import MOST_TOKENS, VirtualTokens, embedding_width

if TYPE_CHECKING:
    from core.models import ModelInfo

KEYS_AND_VALUES = frozenset({"k_proj", "v_proj", "key", "value", "k", "v", "k_lin", "v_lin"})
FUSED = "c_attn"  # GPT-2's projection to queries, keys and values
_OTHER_SENSES = ("vision", "visual", "image", "audio", "speech")


@dataclass(frozen=True)
class PrefixOptions(Checked):
    """What only prefix tuning has."""

    tokens: int = option(
        10, "Trained positions put before every text; each takes the place of a token.", minimum=1, maximum=MOST_TOKENS
    )
    projection: bool = option(
        False, "Train a small network that makes the keys and values, as in the paper, instead of these themselves."
    )
    hidden: int = option(512, "Width of that network.", minimum=1, maximum=65_536)


@methods.register("prefix")
class Prefix(VirtualTokens):
    """Trained positions that every layer can attend to."""

    title = "Prefix tuning"
    summary = "Trains the keys and values of a few positions before every text, in all layers. It takes up context."
    paper = "Li & Liang 2021, arXiv 2101.00190"
    options = PrefixOptions
    layers = frozenset({"embedding", "linear", "conv1d"})

    @classmethod
    def rate_factor(cls, config: AdapterConfig) -> float:
        """Keys and values themselves need large steps; the network does not."""
        return 1.0 if PrefixOptions(**config.method_options).projection else 5.0

    @classmethod
    def check_model(cls, info: ModelInfo, config: AdapterConfig) -> None:
        """The model has keys and values of its own."""
        key_value_paths(path for target in info.targets for path in target.paths)

    @classmethod
    def own_parameters(cls, info: ModelInfo, config: AdapterConfig) -> int:
        """P times the width of all keys and values; with the network its inputs P d and two layers."""
        options = PrefixOptions(**config.method_options)
        shapes = {path: shape for t in info.targets for path, shape in zip(t.paths, t.shapes, strict=True)}
        width = sum(key_value_width(path, *shapes[path]) for path in key_value_paths(shapes))
        if not options.projection:
            return options.tokens * width
        d = embedding_width(info)
        return options.tokens * d + options.hidden * (d + 1) + width * (options.hidden + 1)


def key_value_paths(paths: Iterable[str]) -> list[str]:
    """The layers that make the keys and values a text attends to, by name; of an encoder-decoder the encoder's.

    Raises ConfigError when there are none, as where one layer makes queries, keys and values of every head in turn.
    """
    found = [path for path in paths if path.rpartition(".")[2] in {*KEYS_AND_VALUES, FUSED} and _reads_text(path)]
    if any("decoder" in path.split(".") for path in found):
        found = [path for path in found if "encoder" in path.split(".")] or found
    if not found:
        raise ConfigError(
            "Prefix tuning needs layers that make keys and values alone, such as k_proj and v_proj; here are none.",
            "Pick prompt tuning or LoRA.",
        )
    return found


def key_value_width(path: str, d_in: int, d_out: int) -> int:
    """How many of a layer's outputs are keys or values."""
    return d_out - d_in if path.rpartition(".")[2] == FUSED else d_out


def _reads_text(path: str) -> bool:
    return not any(sense in path.lower() for sense in _OTHER_SENSES)
