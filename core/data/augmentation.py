"""Examples changed at random each time they are trained on, by a function of example, step and row (`Augment`).

A run's own is `trainer.gradients.prepared.augment`; put any other there. Nothing but its arguments may decide what it
gives: batches are made ahead, and a resumed run makes them again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from core.config import TrainConfig
from core.errors import ConfigError
from core.tasks.choice import PREFERENCE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Augment = Callable[[Any, int, int], Any]  # an example, the steps before this one, its row -> an example of its length


def augmentation(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, task: str) -> Augment | None:
    """Token dropout as the settings have it, None for none; ConfigError for a task whose rows it would spoil."""
    share = config.data.token_dropout
    if share and task == PREFERENCE:
        raise ConfigError("token_dropout would make the prompts of a pair differ.", "Set token_dropout to 0.")
    return TokenDropout(share, tokenizer, config.seed) if share else None


class TokenDropout:
    """Puts one token in the place of a share of an example's tokens, never of trained or special ones.

    That is word dropout (Iyyer et al. 2015, section 2.2, there by leaving words out) at a constant length.
    """

    def __init__(self, share: float, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> None:
        self.share, self.seed = share, seed
        self.kept = frozenset(tokenizer.all_special_ids)
        choices = (tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
        self.substitute = next((token for token in choices if token is not None), 0)

    def __call__(self, example: Any, step: int, row: int) -> Any:
        """The example with other inputs; what is trained stays as it is."""
        trained = getattr(example, "loss_mask", (False,) * len(example.input_ids))
        hit = np.random.default_rng([self.seed, step, row]).random(len(example.input_ids)) < self.share
        ids = tuple(
            self.substitute if lost and not wanted and token >= 0 and token not in self.kept else token
            for token, wanted, lost in zip(example.input_ids, trained, hit, strict=True)
        )
        return replace(example, input_ids=ids)
