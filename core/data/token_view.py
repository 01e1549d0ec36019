"""What a model will see of a dataset, before it trains: every token, which of them are trained, and how many in all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.data.records import Record
from core.data.template import tokenize_all
from core.data.token_cache import TokenCache
from core.data.token_parts import CHUNK, Progress
from core.data.tokenized import TokenizedExample, TokenTable, lengths_of
from core.data.truncation import choose_max_length
from core.errors import DatasetError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT, TRAINED, CUT = "prompt", "trained", "cut"
BINS = 40
PERCENTILES = (50, 95, 99, 100)


@dataclass(frozen=True)
class Measurement:
    """The lengths of a dataset's rows in tokens, and what is trained of them at one maximum length."""

    rows: int  # measured
    tokens: int  # of one epoch, after the cut
    trained: int  # terms of the loss in one epoch, after the cut
    max_length: int
    cut_rows: int  # longer than that
    lost_rows: int  # of which nothing is left to train
    percentiles: dict[str, int]  # "50", "95", "99", "100" -> tokens
    edges: tuple[int, ...]  # of the histogram's bins, one more than counts; the last one is open
    counts: tuple[int, ...]
    refused: int  # rows whose answers cannot be told from their prompts
    refusal: str  # why, of the first of them


def pieces(example: TokenizedExample, tokenizer: PreTrainedTokenizerBase, max_length: int = 0) -> list[tuple[str, str]]:
    """An example's tokens as (text, state), in order: PROMPT is read only, TRAINED is learned, CUT is too far back.

    Tokens that hold parts of one character are shown together, marked trained when any of them is.
    """
    found: list[tuple[str, str]] = []
    waiting: list[int] = []
    trained = False
    for at, (token, is_trained) in enumerate(zip(example.input_ids, example.loss_mask, strict=True)):
        waiting.append(token)
        trained = trained or is_trained
        text = str(tokenizer.decode(waiting, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if text.endswith("\ufffd") and len(waiting) < 8 and at + 1 < len(example.input_ids):
            continue
        state = CUT if max_length and at >= max_length else TRAINED if trained else PROMPT
        found.append((text, state))
        waiting, trained = [], False
    return found


class LengthMeter:
    """Tokenises rows once, and measures them at as many maximum lengths as are asked for."""

    def __init__(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        completion_only: bool = True,
        progress: Progress | None = None,
        cache: TokenCache | None = None,
    ) -> None:
        """Tokenise the records; those that the template refuses are counted, not raised."""
        self.refused, self.refusal = 0, ""
        try:
            self._table = tokenize_all(records, tokenizer, completion_only, progress, cache)
        except DatasetError:  # some rows are refused, or nobody waits for the answer any more
            self._table = self._without_refused(records, tokenizer, completion_only, progress)
        if not self._table:
            raise DatasetError(self.refusal or "The dataset has no usable row.", "Choose another model.")

    def measure(self, max_length: int = 0, context_length: int = 0) -> Measurement:
        """The figures at one maximum length; 0 is the one that training would choose."""
        lengths = lengths_of(self._table)
        chosen = max_length or choose_max_length(lengths, context_length)
        chosen = min(chosen, context_length) if context_length else chosen
        left: list[int] = self._table.cut(chosen).trained.tolist()
        edges, counts = _histogram(lengths)
        return Measurement(
            rows=len(lengths),
            tokens=sum(min(length, chosen) for length in lengths),
            trained=sum(left),
            max_length=chosen,
            cut_rows=sum(length > chosen for length in lengths),
            lost_rows=left.count(0),
            percentiles={str(share): _percentile(lengths, share) for share in PERCENTILES},
            edges=edges,
            counts=counts,
            refused=self.refused,
            refusal=self.refusal,
        )

    def _without_refused(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        completion_only: bool,
        progress: Progress | None,
    ) -> TokenTable:
        tables = []
        for start in range(0, len(records), CHUNK):
            tables += self._tokenized(records[start : start + CHUNK], tokenizer, completion_only)
            if progress:
                progress(min(start + CHUNK, len(records)), len(records))
        return TokenTable.joined(tables)

    def _tokenized(
        self, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, completion_only: bool
    ) -> list[TokenTable]:
        try:
            return [tokenize_all(records, tokenizer, completion_only)]
        except DatasetError as error:
            if len(records) > 1:
                return [one for record in records for one in self._tokenized([record], tokenizer, completion_only)]
            self.refused += 1
            self.refusal = self.refusal or error.what
            return []


def _percentile(lengths: Sequence[int], share: int) -> int:
    """The length that `share` per cent of the rows do not exceed (nearest rank)."""
    ranked = sorted(lengths)
    return ranked[max(0, math.ceil(share / 100 * len(ranked)) - 1)]


def _histogram(lengths: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Counts in bins of one width up to the longest row that is no outlier; what is longer falls into the last bin."""
    longest = min(max(lengths), 3 * _percentile(lengths, 95))
    width = max(1, -(-(longest + 1) // BINS))
    bins = -(-(longest + 1) // width)
    counts = [0] * bins
    for length in lengths:
        counts[min(length // width, bins - 1)] += 1
    return tuple(width * number for number in range(bins + 1)), tuple(counts)
