"""The next token of a causal language model: chat, instructions and plain text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from core.config import TrainConfig
from core.data.batching import Batch, collate
from core.data.packing import PackedBatch, Shape, pack
from core.data.records import Record
from core.data.token_parts import Progress
from core.data.tokenized import TokenizedExample
from core.examples import Examples, prepare_examples
from core.loss import Head, device_of, find_head, hidden_states, loss_at, loss_sum
from core.packed_attention import packed_attention, why_not_packed
from core.scoring.scores import Scores
from core.tasks import choice
from core.tasks.answering import answered, text_scores
from core.tasks.task import Task, Tick, idle

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Completion(Task):
    """Cross entropy of the trained tokens; `head` is how the model makes logits, None where only it knows."""

    name = choice.COMPLETION
    writes = True

    def __init__(self, head: Head | None = None) -> None:
        self.head = head

    def bind(self, model: nn.Module, config: TrainConfig) -> None:
        """Find the model's head, adapted or not."""
        super().bind(model, config)
        self.head = find_head(model)

    def prepare(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
        context_length: int,
        progress: Progress | None,
        virtual_tokens: int,
    ) -> Examples:
        """Conversations as tokens, of which the answers are trained."""
        return prepare_examples(records, tokenizer, config, context_length, progress, virtual_tokens, self.cache)

    def collate(self, examples: Sequence[TokenizedExample], pad_id: int) -> Batch:
        """Token ids and labels (B, T)."""
        return collate(examples, pad_id)

    def why_not_packed(self, model: nn.Module, longest: int) -> str:
        """What a trial with a few tokens shows."""
        body = model if self.head is None else self.head.body

        def hidden(batch: PackedBatch | Tensor) -> Tensor:
            ids, places = (batch.input_ids, batch.position_ids) if isinstance(batch, PackedBatch) else (batch, None)
            if self.head is not None:
                return hidden_states(body, ids, places)
            given = {} if places is None else {"position_ids": places}
            logits: Tensor = model(input_ids=ids, use_cache=False, **given).logits
            return logits

        return why_not_packed(model, hidden, longest)

    def pack(self, examples: Sequence[TokenizedExample], pad_id: int, shape: Shape, prefix: int) -> PackedBatch:
        """Token ids (1, T), and the positions that are trained."""
        return pack(examples, pad_id, shape, prefix)

    def computing(self, model: nn.Module, batch: Batch | PackedBatch) -> AbstractContextManager[None]:
        """Attention within the examples of a packed row."""
        if not isinstance(batch, PackedBatch):
            return nullcontext()
        device = device_of(model)
        return packed_attention(model, batch.layout.changed(lambda bounds: bounds.to(device, non_blocking=True)))

    def loss_sum(self, model: nn.Module, batch: Batch | PackedBatch) -> Tensor:
        """Sum of -log p over the trained tokens."""
        if isinstance(batch, PackedBatch):
            batch = batch.to(device_of(model))
            places = batch.positions, batch.targets, batch.position_ids
            return loss_at(model, self.head, batch.input_ids, *places, self.smoothing(model))
        return loss_sum(model, self.head, batch.input_ids.to(device_of(model)), batch.labels, self.smoothing(model))

    def answer(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], rows: int, tick: Tick = idle
    ) -> Scores:
        """Exact match, shared words, and where JSON is expected, how much of it is right."""
        return text_scores(answered(model, tokenizer, records, rows, tick))
