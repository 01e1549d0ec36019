"""P-tuning: prompt tuning whose vectors a bidirectional LSTM and an MLP make from trained inputs (Liu et al. 2021,
section 3.2).

All virtual tokens stand before the text. The encoder stays in the file, so that training can go on;
`core.adapters.baking` replaces it by the vectors it makes, once it is no longer needed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.adapters.base import LayerSettings, adapters
from core.adapters.prompt import VirtualEmbedding
from core.config import AdapterConfig
from core.methods import options_of
from core.methods.p_tuning import hidden_width

LAYERS = 2  # of the LSTM


@adapters.register("p_tuning")
class PTuning(VirtualEmbedding):
    """The inputs of the virtual tokens, and the encoder: MLP(BiLSTM(inputs))."""

    peft_type = "P_TUNING_ENCODER"

    def __init__(self, base: nn.Embedding, settings: LayerSettings) -> None:
        super().__init__(base, settings)
        d, h = self.width, hidden_width(settings.options, self.width)
        where: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype}
        self.inputs = nn.Parameter(torch.empty(self.count, d, **where))
        self.lstm = nn.LSTM(d, h, LAYERS, bidirectional=True, batch_first=True, **where)
        self.mlp_in = nn.Linear(2 * h, 2 * h, **where)
        self.mlp_out = nn.Linear(2 * h, d, **where)

    def train(self, mode: bool = True) -> PTuning:
        """As any module; but cuDNN computes gradients of an LSTM in training mode only, which changes nothing else."""
        super().train(mode)
        self.lstm.train(True)
        return self

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Inputs standard normal; every layer uniform in +-1/sqrt(its width), as torch starts them."""
        self.inputs.copy_(torch.empty(self.inputs.shape).normal_(generator=generator))
        bounds = {self.lstm: self.lstm.hidden_size, self.mlp_in: self.mlp_in.in_features}
        for layer, width in {**bounds, self.mlp_out: self.mlp_out.in_features}.items():
            for parameter in layer.parameters():
                bound = 1 / math.sqrt(width)
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))

    def vectors(self) -> Tensor:
        """What the encoder makes of the inputs, (P, d)."""
        hidden, _ = self.lstm(self.inputs.unsqueeze(0))
        made: Tensor = self.mlp_out(F.relu(self.mlp_in(hidden.squeeze(0))))
        return made

    def tensors(self) -> dict[str, Tensor]:
        """Inputs and encoder, by their names below the embedding."""
        return {f"prompt_encoder.{name}": parameter for name, parameter in self.named_parameters()}

    @classmethod
    def baked_config(cls, config: AdapterConfig) -> AdapterConfig:
        """Prompt tuning with as many tokens."""
        return replace(config, method="prompt", method_options={"tokens": options_of(config).tokens})

    def baked(self) -> dict[str, Tensor]:
        """The vectors."""
        return {"prompt.weight": self.vectors()}
