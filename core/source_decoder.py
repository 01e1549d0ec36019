"""Decoding with an encoder in front: the sources are read once, and the answers grow from the start token.

The counterpart, for T5, BART and their kin, of the decoder in `core/generate.py`, with the same calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from core.adapters import adapter_rows
from core.loss import device_of
from core.mode import mode


class SourceRow(Protocol):
    """One text while it is being answered."""

    prompt: list[int]
    adapter: str | None
    tokens_left: int


class SourceDecoder:
    """The rows still running, what the encoder made of their sources, their answers so far, and the decoder's cache."""

    def __init__(self, model: Any, rows: Sequence[Any], pad_id: int, per_row: bool) -> None:
        from core.tasks.seq2seq import start_id

        self.rows = list(rows)
        self._model, self._per_row = model, per_row
        longest = max((len(row.prompt) for row in rows), default=0)
        device = device_of(model)
        padded = [row.prompt + [pad_id] * (longest - len(row.prompt)) for row in rows]
        mask = [[1] * len(row.prompt) + [0] * (longest - len(row.prompt)) for row in rows]
        self._source = torch.tensor(padded, dtype=torch.long, device=device)  # (B, S)
        self._mask = torch.tensor(mask, dtype=torch.long, device=device)
        self._ids = torch.full((len(self.rows), 1), start_id(model), dtype=torch.long, device=device)  # (B, T)
        self._encoded: Any = None
        self._cache: Any = None

    @torch.no_grad()
    def next_logits(self) -> Tensor:
        """Logits (B, V) of the token after the last, in float32."""
        unread = self._ids if self._cache is None else self._ids[:, -1:]
        with mode(self._model, training=False), self._adapters():
            if self._encoded is None:
                self._encoded = self._model.get_encoder()(input_ids=self._source, attention_mask=self._mask)
            output = self._model(
                encoder_outputs=self._encoded, attention_mask=self._mask, decoder_input_ids=unread,
                past_key_values=self._cache, use_cache=True,
            )  # fmt: skip
        self._cache = getattr(output, "past_key_values", None)
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _adapters(self) -> Any:
        return adapter_rows(self._model, [row.adapter for row in self.rows]) if self._per_row else nullcontext()

    def advance(self, chosen: Sequence[int]) -> None:
        """Append the chosen tokens, and let the rows that have ended leave."""
        column = torch.tensor(chosen, dtype=torch.long, device=self._ids.device).unsqueeze(1)
        self._ids = torch.cat([self._ids, column], dim=1)
        running = [index for index, row in enumerate(self.rows) if row.tokens_left > 0]
        if len(running) < len(self.rows):
            self._keep(running)

    def _keep(self, running: list[int]) -> None:
        index = torch.tensor(running, dtype=torch.long, device=self._ids.device)
        self.rows = [self.rows[row] for row in running]
        self._ids, self._mask = self._ids[index], self._mask[index]
        self._encoded.last_hidden_state = self._encoded.last_hidden_state[index]
        if running and hasattr(self._cache, "batch_select_indices"):
            self._cache.batch_select_indices(index)
        else:
            self._cache = None  # read again from the start, once
