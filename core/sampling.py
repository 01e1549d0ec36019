"""Choosing the next token from logits, with random numbers of the row's own."""

from __future__ import annotations

import torch
from torch import Tensor

from core.config import GenerationConfig


class TokenSampler:
    """Draws the tokens of one row; which ones depends on its logits and the seed, never on the rows beside it."""

    def __init__(self, config: GenerationConfig) -> None:
        self.config = config
        self._generator = torch.Generator().manual_seed(config.seed)

    def choose(self, logits: Tensor) -> int:
        """The next token for logits (V): the likeliest at temperature 0, else one of the nucleus.

        Nucleus sampling (Holtzman et al. 2020, section 3.1) by inversion: one uniform number a token.
        """
        if self.config.temperature == 0:
            return int(logits.argmax())
        shares, tokens = nucleus(logits, self.config.temperature, self.config.top_p)
        point = torch.rand((), generator=self._generator, dtype=torch.float64)
        place = int(torch.searchsorted(shares.cumsum(0), point * shares.sum(), right=True))
        return int(tokens[min(place, len(tokens) - 1)])


def nucleus(logits: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """The fewest tokens whose probabilities reach `top_p`, likeliest first: (probabilities, tokens), on the host."""
    probabilities = torch.softmax(logits.double().cpu() / temperature, dim=-1)
    ranked, tokens = probabilities.sort(descending=True, stable=True)
    before = ranked.cumsum(0) - ranked  # probability of everything likelier
    kept = max(1, int((before < top_p).sum()))
    return ranked[:kept], tokens[:kept]
