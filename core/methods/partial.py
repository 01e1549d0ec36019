"""Partial fine-tuning: some of the model's own weights train, the rest is frozen."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.config import AdapterConfig, Checked, option
from core.errors import ConfigError
from core.methods.method import BASELINE, Method, methods
from core.parts import Shapes, head, last_blocks, norms
from core.selection import is_saved

if TYPE_CHECKING:
    from core.models import ModelInfo

LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM")


@dataclass(frozen=True)
class PartialOptions(Checked):
    """What only partial fine-tuning has."""

    part: str = option(
        "last_blocks",
        "What trains: the last blocks with the head, the norms, or the head alone (linear probe).",
        choices=("last_blocks", "layernorm", "head"),
    )
    blocks: int = option(2, "How many of the last blocks train.", minimum=1, maximum=10_000)


@methods.register("partial")
class Partial(Method):
    """Full fine-tuning of a part."""

    title = "Partial fine-tuning"
    hint = "last blocks, norms or head"
    summary = "Trains the last blocks, the norms or the head of the model as they are, and freezes the rest."
    paper = "Hu et al. 2021, arXiv 2106.09685, section 5 (FT-Top2)"
    group = BASELINE
    options = PartialOptions
    uses = frozenset({"modules_to_save"})

    @classmethod
    def rate_factor(cls, config: AdapterConfig) -> float:
        """Whole blocks learn as slowly as a whole model; few, new or small tensors need larger steps."""
        return 0.1 if PartialOptions(**config.method_options).part == "last_blocks" else 1.0

    @classmethod
    def trains_matrices(cls, config: AdapterConfig) -> bool:
        """Those of the last blocks; norms and output layer are never quantised."""
        return bool(PartialOptions(**config.method_options).part == "last_blocks")

    @classmethod
    def check_model(cls, info: ModelInfo, config: AdapterConfig) -> None:
        """The model has that part, and that many blocks."""
        chosen_part(*_file_tensors(info), config)

    @classmethod
    def trainable_parameters(cls, info: ModelInfo, config: AdapterConfig) -> int:
        """The sizes of the chosen tensors."""
        shapes, tied = _file_tensors(info)
        return sum(math.prod(shapes[name]) for name in with_saved(chosen_part(shapes, tied, config), shapes, config))

    @classmethod
    def describe(cls, info: ModelInfo, config: AdapterConfig) -> str:
        """How many numbers train, or that a head does which the model does not have yet."""
        return super().describe(info, config) if cls.trainable_parameters(info, config) else "A new head trains."


def chosen_part(shapes: Shapes, tied: Collection[str], config: AdapterConfig) -> list[str]:
    """The tensors that train, by name; `tied` are those that are one with others. ConfigError when there are none."""
    options = PartialOptions(**config.method_options)
    if options.part == "last_blocks":
        return last_blocks(shapes, options.blocks, tied)
    found = norms(shapes) if options.part == "layernorm" else head(shapes)
    if not found:
        what = "no norm with weights" if options.part == "layernorm" else "no output layer"
        raise ConfigError(f"This model has {what}.", "Pick another part to train.")
    return found


def with_saved(chosen: Collection[str], shapes: Shapes, config: AdapterConfig) -> list[str]:
    """The chosen tensors and those of the modules that `modules_to_save` names, in the order of the model."""
    return [name for name in shapes if name in chosen or is_saved(name.rpartition(".")[0], config.modules_to_save)]


def _file_tensors(info: ModelInfo) -> tuple[Shapes, frozenset[str]]:
    """The model's tensors from its files, and the head, which is not in them when it is tied to the embedding.

    Nor is it when an encoder becomes a classifier: that head is new, and counts nothing while its labels are not known.
    """
    shapes = dict(info.tensors)
    found = head(shapes)
    outputs = {name for name in found if shapes[name] == (info.vocab_size, info.hidden_size)}
    is_language_model = info.architecture.endswith(LANGUAGE_MODELS)
    if not is_language_model and not found:
        return {**shapes, "classifier.weight": (0, info.hidden_size)}, frozenset()
    if outputs or not is_language_model:
        return shapes, frozenset(outputs if info.tied_embeddings else ())
    return {**shapes, "lm_head.weight": (info.vocab_size, info.hidden_size)}, frozenset({"lm_head.weight"})
