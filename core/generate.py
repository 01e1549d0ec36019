"""Answers, streamed: several conversations in one batch, each with an adapter of its own if wanted.

Rows are padded on the left and share one key-value cache; a row that has ended leaves the batch. What a row says does
not depend on the rows beside it (but for rounding, which a batch of another size can do otherwise).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from core.adapters import adapter_rows
from core.adapters.switch import group_rows
from core.config import GenerationConfig
from core.data.records import Message
from core.data.rendering import encode_prompt, encode_source
from core.detokenize import Detokenizer
from core.errors import ConfigError
from core.loss import device_of
from core.mode import mode
from core.prompt import virtual_ids
from core.sampling import TokenSampler
from core.source_decoder import SourceDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    adapters: Sequence[str | None] | None = None,
    config: GenerationConfig | None = None,
) -> list[str]:
    """The model's answer to each conversation; see `stream`."""
    texts: tuple[str, ...] = ("",) * len(conversations)
    for answers in stream(model, tokenizer, conversations, adapters, config):
        texts = answers
    return list(texts)


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    adapters: Sequence[str | None] | None = None,
    config: GenerationConfig | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[tuple[str, ...]]:
    """Yield the answers so far after every token, one text per conversation, until all have ended.

    `adapters` names the adapter of each conversation, None the bare base; left out, the model's active adapters serve
    all of them. A row ends at an end token, at `max_new_tokens`, or where the model's context is full; all end when
    `stop()` is true. Raises ConfigError when a conversation is longer than the context.
    """
    config = config or GenerationConfig()
    if adapters is not None and len(adapters) != len(conversations):
        raise ConfigError(f"{len(conversations)} conversations have {len(adapters)} adapters.", "Give one to each.")
    rows = _rows(model, tokenizer, conversations, adapters, config)
    ends = end_ids(model, tokenizer)
    kind = SourceDecoder if model.config.is_encoder_decoder else _Decoder
    decoder = kind(model, rows, int(tokenizer.pad_token_id or 0), per_row=adapters is not None)
    while decoder.rows and not (stop and stop()):
        logits = decoder.next_logits()
        chosen = [row.take(logits[index], ends) for index, row in enumerate(decoder.rows)]
        yield tuple(row.words.text for row in rows)
        decoder.advance(chosen)


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends an answer: those of the model's generation settings, and the tokenizer's own."""
    found: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = found if isinstance(found, (list, tuple)) else [found]
    return frozenset(int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None)


@dataclass
class _Row:
    """One conversation while it is being answered."""

    prompt: list[int]
    adapter: str | None
    sampler: TokenSampler
    words: Detokenizer
    tokens_left: int

    def take(self, logits: Tensor, ends: frozenset[int]) -> int:
        """Choose the next token from logits (V), add it to the text, and note when it was the last."""
        token = self.sampler.choose(logits)
        self.tokens_left = 0 if token in ends else self.tokens_left - 1
        if token not in ends:
            self.words.add(token)
        return token


def _rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    adapters: Sequence[str | None] | None,
    config: GenerationConfig,
) -> list[_Row]:
    context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 0)
    has_encoder = bool(model.config.is_encoder_decoder)
    rows = []
    for index, conversation in enumerate(conversations):
        adapter = adapters[index] if adapters is not None else None
        before = virtual_ids(model, adapter) if adapter or adapters is None else ()
        encode = encode_source if has_encoder else encode_prompt
        prompt = [*before, *encode(conversation, tokenizer)]
        # An encoder has its own room for the prompt; the answer then has all of the decoder's.
        room = context - len(prompt) if context else config.max_new_tokens
        if room < 1 or not prompt:
            raise ConfigError(
                f"Conversation {index + 1} has {len(prompt):,} tokens; the model takes 1 to {context - 1:,}.",
                "Shorten it, or start a new one.",
            )
        left = min(context or room if has_encoder else room, config.max_new_tokens)
        rows.append(_Row(prompt, adapter, TokenSampler(config), Detokenizer(tokenizer), left))
    return rows


class _Decoder:
    """The rows still running, their tokens so far, and the cache of what the model has read."""

    def __init__(self, model: PreTrainedModel, rows: Sequence[_Row], pad_id: int, per_row: bool) -> None:
        self.rows = list(rows)
        self._model = model
        self._groups = group_rows(model, [row.adapter for row in rows]) if per_row else None
        longest = max((len(row.prompt) for row in rows), default=0)
        padded = [[pad_id] * (longest - len(row.prompt)) + row.prompt for row in rows]
        mask = [[0] * (longest - len(row.prompt)) + [1] * len(row.prompt) for row in rows]
        device = device_of(model)
        self._ids = torch.tensor(padded, dtype=torch.long, device=device)  # (B, T), padded on the left
        self._mask = torch.tensor(mask, dtype=torch.long, device=device)
        self._cache: Any = None
        self._takes = inspect.signature(model.forward).parameters

    @torch.no_grad()
    def next_logits(self) -> Tensor:
        """Logits (B, V) of the token after the last, in float32."""
        unread = self._ids if self._cache is None else self._ids[:, -1:]
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -unread.shape[1] :]
        wanted = {"position_ids": positions, "logits_to_keep": 1, "past_key_values": self._cache}
        options = {name: value for name, value in wanted.items() if name in self._takes}
        with mode(self._model, training=False), self._adapters():
            output = self._model(input_ids=unread, attention_mask=self._mask, use_cache=True, **options)
        self._cache = getattr(output, "past_key_values", None)
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _adapters(self) -> Any:
        return adapter_rows(self._model, self._groups) if self._groups else nullcontext()

    def advance(self, chosen: Sequence[int]) -> None:
        """Append the chosen tokens, and let the rows that have ended leave."""
        column = torch.tensor(chosen, dtype=torch.long, device=self._ids.device).unsqueeze(1)
        self._ids = torch.cat([self._ids, column], dim=1)
        self._mask = torch.cat([self._mask, torch.ones_like(column)], dim=1)
        running = [index for index, row in enumerate(self.rows) if row.tokens_left > 0]
        if len(running) < len(self.rows):
            self._keep(running)

    def _keep(self, running: list[int]) -> None:
        index = torch.tensor(running, dtype=torch.long, device=self._ids.device)
        self.rows = [self.rows[row] for row in running]
        if self._groups:
            self._groups = group_rows(self._model, [row.adapter for row in self.rows])
        self._ids, self._mask = self._ids[index], self._mask[index]
        if running and hasattr(self._cache, "batch_select_indices"):
            self._cache.batch_select_indices(index)
        else:
            self._cache = None  # read again from the start, once
