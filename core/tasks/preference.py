"""Preference tuning: of two answers to one prompt, make the better one likelier and the worse one less likely.

Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290, equation 7). The reference is the same base with
the adapter switched off, so no second model is in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.adapters.inject import activate, adapters_of
from core.config import TrainConfig
from core.data.batching import Batch, collate
from core.data.records import Record
from core.data.split import split_places
from core.data.template import tokenize_all
from core.data.token_cache import TokenCache
from core.data.token_parts import Progress
from core.data.tokenized import TokenizedExample
from core.data.truncation import choose_max_length
from core.errors import ConfigError, DatasetError
from core.examples import Examples
from core.log_probs import row_log_probs
from core.loss import Head, device_of, find_head
from core.mode import mode
from core.ops.fast_path import FastPath
from core.scoring.scores import Scores
from core.tasks import choice
from core.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rewards = tuple[float, float]  # of the better and of the worse answer


@dataclass(frozen=True)
class PreferenceExample:
    """Both conversations as tokens; trained is what comes after their common beginning."""

    chosen: TokenizedExample
    rejected: TokenizedExample

    @property
    def input_ids(self) -> tuple[int, ...]:
        """The tokens of both, the better one first."""
        return self.chosen.input_ids + self.rejected.input_ids

    @property
    def row(self) -> int:
        """The row of the dataset."""
        return self.chosen.row

    @property
    def n_trained(self) -> int:
        """Terms of the loss: one."""
        return 1

    def fingerprint(self) -> list[int]:
        """Numbers that are equal for equal examples only."""
        return [*self.chosen.fingerprint(), *self.rejected.fingerprint()]

    def after(self, ids: tuple[int, ...]) -> PreferenceExample:
        """The same example with tokens before both conversations that are not trained."""
        return PreferenceExample(self.chosen.after(ids), self.rejected.after(ids))


class Preference(Task):
    """-log sigmoid of beta times how much more the adapter prefers the better answer than its base does."""

    name = choice.PREFERENCE

    def __init__(self, beta: float = TrainConfig().dpo_beta, head: Head | None = None) -> None:
        self.beta, self.head = beta, head

    @classmethod
    def of(cls, records: Sequence[Record], config: TrainConfig) -> Preference:
        """The task with the settings' beta; DatasetError when a row is no pair."""
        without = next((record.row for record in records if not record.rejected), None)
        if without is not None:
            raise DatasetError(f"Row {without} has no worse answer.", "Pick a dataset of preference pairs.")
        return cls(config.dpo_beta)

    def bind(self, model: nn.Module, config: TrainConfig) -> None:
        """Find the model's head, adapted or not, and refuse a method that would move the reference."""
        if config.adapter.method == "delta_lora" and config.adapter.method_options.get("mode") == "mutate":
            raise ConfigError(
                "Delta-LoRA's mutate mode changes the base, which DPO compares with.", "Set mode to functional."
            )
        super().bind(model, config)
        self.head = find_head(model)
        self.reference_path = FastPath(model, config.fast_path)

    def prepare(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
        context_length: int,
        progress: Progress | None,
        virtual_tokens: int,
    ) -> Examples:
        """Pairs as tokens, cut at the longest length; pairs whose answers do not differ within it are left out."""
        data = config.data
        places = split_places(records, data.validation_share, data.validation_max_rows, config.seed)
        pairs = _pairs(records, tokenizer, progress, self.cache)
        room = max(0, context_length - virtual_tokens)
        lengths = [max(len(one.input_ids), len(other.input_ids)) for one, other in pairs]
        longest = data.max_length or choose_max_length(lengths, room)
        longest = min(longest, room) if room else longest
        before = tuple(range(-1, -1 - virtual_tokens, -1))
        cut = [_differing(one.cut(longest), other.cut(longest)) for one, other in pairs]
        train, validation = (
            tuple(pair.after(before) for pair in (cut[place] for place in side) if pair is not None) for side in places
        )
        if not train:
            raise DatasetError("No pair has two different answers left to train.", "Raise the maximum length.")
        lost = tuple(sorted(one.row for (one, _), pair in zip(pairs, cut, strict=True) if pair is None))
        return Examples(train, validation, longest + virtual_tokens, lost)

    def collate(self, examples: Sequence[PreferenceExample], pad_id: int) -> Batch:
        """Token ids and labels (2 B, T): all better answers, then all worse ones."""
        return collate([*(pair.chosen for pair in examples), *(pair.rejected for pair in examples)], pad_id)

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum over the pairs of -log sigmoid(reward of the better - reward of the worse)."""
        better, worse = self._rewards(model, batch)
        share = self.smoothing(model)  # of the pairs taken to be labelled the wrong way round (conservative DPO)
        margin = better - worse
        return -((1 - share) * F.logsigmoid(margin) + share * F.logsigmoid(-margin)).sum()

    def judged(self, model: nn.Module, batch: Batch) -> tuple[Tensor, list[Rewards]]:
        """The loss, and the rewards of both answers of each pair."""
        better, worse = self._rewards(model, batch)
        return -F.logsigmoid(better - worse).sum(), list(zip(better.tolist(), worse.tolist(), strict=True))

    def scores(self, outcomes: Sequence[Rewards]) -> Scores:
        """How often the better answer has the higher reward (a tie counts half), and by how much, in nats."""
        count = max(1, len(outcomes))
        wins = sum((better > worse) + 0.5 * (better == worse) for better, worse in outcomes)
        margin = sum(better - worse for better, worse in outcomes)
        means = [sum(pair[side] for pair in outcomes) / count for side in (0, 1)]
        names = ("preference_accuracy", "preference_margin", "reward_chosen", "reward_rejected")
        return Scores(dict(zip(names, (wins / count, margin / count, *means), strict=True)))

    def _rewards(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """beta (log p of the adapter - log p of the base) of the better (B) and the worse answers (B)."""
        base = self._base_log_probs(model, batch)  # first: nothing may change between the own passes there and back
        ids = batch.input_ids.to(device_of(model))
        own = row_log_probs(model, self.head, ids, batch.labels)
        better, worse = torch.chunk(self.beta * (own - base), 2)
        return better, worse

    @torch.no_grad()
    def _base_log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        """log p (2 B) of the base, asked without the adapter's own positions; on the path that the adapter is on."""
        record, virtual = adapters_of(model), int((batch.input_ids[0] < 0).sum())
        active = record.active
        activate(record, ())
        try:
            with mode(model, training=False), self.reference_path.running():
                ids = batch.input_ids[:, virtual:].to(device_of(model))
                return row_log_probs(model, self.head, ids, batch.labels[:, virtual:])
        finally:
            activate(record, active)


def _pairs(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress | None,
    cache: TokenCache | None,
) -> list[tuple[TokenizedExample, TokenizedExample]]:
    rejected = [replace(record, messages=record.rejected) for record in records]
    chosen = tokenize_all(records, tokenizer, True, progress, cache)
    return list(zip(chosen, tokenize_all(rejected, tokenizer, cache=cache), strict=True))


def _differing(one: TokenizedExample, other: TokenizedExample) -> PreferenceExample | None:
    """The pair trained only where it differs (the rest adds the same to both sides); None when that is nowhere."""
    pairs = enumerate(zip(one.input_ids, other.input_ids, strict=False))
    shortest = min(len(one.input_ids), len(other.input_ids))
    common = next((place for place, (a, b) in pairs if a != b), shortest)
    sides = [replace(side, loss_mask=(False,) * common + side.loss_mask[common:]) for side in (one, other)]
    return PreferenceExample(*sides) if any(side.n_trained for side in sides) else None
