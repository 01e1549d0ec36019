"""BitFit: the biases of the model train, nothing else."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from core.config import AdapterConfig
from core.errors import ConfigError
from core.methods.method import BASELINE, Method, methods
from core.methods.partial import with_saved
from core.parts import Shapes, biases

if TYPE_CHECKING:
    from core.models import ModelInfo


@methods.register("bitfit")
class BitFit(Method):
    """Full fine-tuning of the biases."""

    title = "BitFit"
    hint = "biases only"
    summary = "Trains only the bias vectors that the model has. Llama and its kin have none; GPT-2 and BERT do."
    paper = "Zaken et al. 2021, arXiv 2106.10199"
    group = BASELINE
    uses = frozenset({"modules_to_save"})
    learning_rate_factor = 1.5

    @classmethod
    def check_model(cls, info: ModelInfo, config: AdapterConfig) -> None:
        """The model has biases."""
        chosen_biases(info.tensors)

    @classmethod
    def trainable_parameters(cls, info: ModelInfo, config: AdapterConfig) -> int:
        """The sizes of all biases."""
        chosen = with_saved(biases(info.tensors), info.tensors, config)
        return sum(math.prod(info.tensors[name]) for name in chosen)


def chosen_biases(shapes: Shapes) -> list[str]:
    """The biases of a model by name; ConfigError when it has none."""
    found = biases(shapes)
    if not found:
        raise ConfigError(
            "BitFit trains biases, and this model has none, as is usual for Llama and its kin.",
            "Pick LoRA, or partial fine-tuning of the norms.",
        )
    return found
