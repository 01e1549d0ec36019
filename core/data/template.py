"""From records to tokens, each marked as trained or not.

What is trained follows from the boundaries of the messages, never from searching for markers: the conversation is
rendered up to the prompt of an answer and up to its end, one must be the beginning of the other, and so must their
tokens. Where that does not hold the row is refused, for a guess would train on the wrong tokens unseen.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from core.data.prompt_tokens import prompt_tokens
from core.data.records import Message, Record
from core.data.rendering import beginning, encode, encode_with_offsets, end_id, plain_parts, render
from core.data.turn_ends import TurnEnds
from core.errors import DatasetError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 256  # records tokenised by one call of the tokenizer

Progress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True)
class TokenizedExample:
    """A record as tokens; `loss_mask[t]` tells whether token t is a target of the loss.

    The first token never is: nothing stands before it that could predict it. So `n_trained` is exactly the number
    of terms in the loss.
    """

    input_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    row: int

    @property
    def n_trained(self) -> int:
        """How many tokens are trained."""
        return sum(self.loss_mask)

    def cut(self, max_length: int) -> TokenizedExample:
        """The first `max_length` tokens; 0 cuts nothing."""
        if not max_length or len(self.input_ids) <= max_length:
            return self
        return TokenizedExample(self.input_ids[:max_length], self.loss_mask[:max_length], self.row)

    def fingerprint(self) -> list[int]:
        """Numbers that are equal for equal examples only."""
        return [len(self.input_ids), *self.input_ids, *map(int, self.loss_mask)]

    def after(self, ids: tuple[int, ...]) -> TokenizedExample:
        """The same example with tokens before it that are not trained."""
        return TokenizedExample(ids + self.input_ids, (False,) * len(ids) + self.loss_mask, self.row)


@dataclass(frozen=True)
class _Chat:
    """A rendered conversation: where each answer begins and ends in its text."""

    text: str
    spans: tuple[tuple[int, int], ...]


def tokenize(
    record: Record, tokenizer: PreTrainedTokenizerBase, max_length: int = 0, completion_only: bool = True
) -> TokenizedExample:
    """Tokenise one record; see `tokenize_all`.

    Raises DatasetError also when nothing is left to train within `max_length` tokens.
    """
    example = tokenize_all([record], tokenizer, completion_only=completion_only)[0]
    cut = example.cut(max_length)
    if not cut.n_trained:
        first = example.loss_mask.index(True)
        raise DatasetError(
            f"Row {record.row:,}: nothing is left to train within {max_length:,} tokens, as its answer begins at "
            f"token {first + 1:,}.",
            "Raise the maximum length, or shorten the prompt.",
        )
    return cut


def tokenize_all(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    completion_only: bool = True,
    progress: Progress | None = None,
) -> list[TokenizedExample]:
    """Tokenise records at their full length (`core.data.truncation` cuts them), in batches.

    Trained are the words of every assistant turn and the token that ends it, not the template's newline after that;
    with `completion_only` off, every token but the first. A template that ends its answers with no special token gets
    the end token after the last one. A plain text trains every token and the end token after it.

    Raises DatasetError naming the row whose answers cannot be told from its prompts, and ModelError for a tokenizer
    that cannot report character offsets.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            "The model has only a slow tokenizer, which cannot tell which characters a token stands for.",
            "Choose a model with a tokenizer.json.",
        )
    ends = TurnEnds.of(tokenizer)
    examples: list[TokenizedExample] = []
    for start in range(0, len(records), CHUNK):
        chunk = records[start : start + CHUNK]
        masked = dict(_masked(chunk, tokenizer, ends))
        examples += [_example(record, *masked[index], completion_only) for index, record in enumerate(chunk)]
        if progress:
            progress(start + len(chunk), len(records))
    return examples


def _example(record: Record, ids: Sequence[int], mask: list[bool], completion_only: bool) -> TokenizedExample:
    mask = mask if completion_only else [True] * len(ids)
    mask[0] = False
    if not any(mask):
        raise DatasetError(f"Row {record.row:,} has no token to train.", "Give it an answer, or skip bad rows.")
    return TokenizedExample(tuple(ids), tuple(mask), record.row)


_Masked = tuple[int, tuple[Sequence[int], list[bool]]]  # index in the chunk, (token ids, mask)


def _masked(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, ends: TurnEnds) -> Iterator[_Masked]:
    chats: list[int] = []
    for index, record in enumerate(records):
        if record.messages and tokenizer.chat_template:
            chats.append(index)
        elif record.messages:
            yield index, _plain_chat(record, tokenizer)
        else:
            ids = [*beginning(tokenizer), *encode([record.text], tokenizer)[0], end_id(tokenizer)]
            yield index, (ids, [True] * len(ids))
    yield from zip(chats, _templated([records[index] for index in chats], tokenizer, ends), strict=True)


def _plain_chat(record: Record, tokenizer: PreTrainedTokenizerBase) -> tuple[Sequence[int], list[bool]]:
    try:
        parts = plain_parts(_answered(record), tokenizer)
    except DatasetError as error:
        raise DatasetError(f"Row {record.row:,}: {error.what}", error.fix) from error
    return [token for ids, _ in parts for token in ids], [answer for ids, answer in parts for _ in ids]


def _answered(record: Record) -> tuple[Message, ...]:
    """The turns up to the last answer; a question after it has nothing to teach."""
    turns = record.messages
    while turns and turns[-1].role != "assistant":
        turns = turns[:-1]
    if not turns:
        raise DatasetError(f"Row {record.row:,} has no answer to train on.", "Add an assistant turn, or skip bad rows.")
    return turns


def _templated(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, ends: TurnEnds
) -> Iterator[tuple[Sequence[int], list[bool]]]:
    if not records:
        return
    chats = _rendered(records, tokenizer, ends)
    encoded = encode_with_offsets([chat.text for chat in chats], tokenizer)
    texts, places = [chat.text for chat in chats], [[start for start, _ in chat.spans] for chat in chats]
    prompts = prompt_tokens(texts, encoded, places, tokenizer)
    for record, chat, (ids, starts), firsts in zip(records, chats, encoded, prompts, strict=True):
        answers = [(first, end) for first, (_, end) in zip(firsts, chat.spans, strict=True) if first is not None]
        if len(answers) == len(chat.spans):
            yield ids, _mask(starts, answers)
        elif any(char.isspace() for start, _ in chat.spans for char in chat.text[max(start - 1, 0) : start + 1]):
            yield _in_parts(chat, tokenizer)
        else:
            raise _unclear(record, "its tokens differ with and without the answer")


def _mask(starts: Sequence[int], answers: Sequence[tuple[int, int]]) -> list[bool]:
    """Mark each answer, given as (its first token, the character after its last), by where the tokens start."""
    mask = [False] * len(starts)
    for first, end in answers:
        stop = bisect_left(starts, end, lo=first)  # the template's newline starts at the end, and stays out
        mask[first:stop] = [True] * (stop - first)
    return mask


def _in_parts(chat: _Chat, tokenizer: PreTrainedTokenizerBase) -> tuple[Sequence[int], list[bool]]:
    """Tokenise prompts and answers apart, as generation does.

    For white space where an answer begins, such as the indent of code, or the blank line of a prompt: many tokenizers
    join it with what follows, and so change the prompt's tokens.
    """
    cuts = [0, *(start for start, _ in chat.spans), len(chat.text)]
    parts = encode_with_offsets([chat.text[a:b] for a, b in pairwise(cuts)], tokenizer)
    ids, mask = list(parts[0][0]), [False] * len(parts[0][0])
    for (start, end), (part, starts) in zip(chat.spans, parts[1:], strict=True):
        ids += part
        mask += _mask(starts, [(0, end - start)])
    return ids, mask


def _rendered(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, ends: TurnEnds) -> list[_Chat]:
    """Render a chunk at once; on a refusal, one by one, to name the row."""
    turns = [_answered(record) for record in records]
    answers = [[at for at, turn in enumerate(row) if turn.role == "assistant"] for row in turns]
    places = [(row, at) for row, ats in zip(turns, answers, strict=True) for at in ats]
    tools = [record.tools for record, ats in zip(records, answers, strict=True) for _ in ats]
    try:
        prompts = iter(render([row[:at] for row, at in places], tokenizer, True, tools))
        wholes = iter(render([row[: at + 1] for row, at in places], tokenizer, False, tools))
    except DatasetError as error:
        if len(records) == 1:
            raise DatasetError(f"Row {records[0].row:,}: {error.what}", error.fix) from error
        return [chat for record in records for chat in _rendered([record], tokenizer, ends)]
    return [
        _chat(record, [(row[at], next(prompts), next(wholes)) for at in ats], ends)
        for record, row, ats in zip(records, turns, answers, strict=True)
    ]


def _chat(record: Record, answers: Sequence[tuple[Message, str, str]], ends: TurnEnds) -> _Chat:
    """Find the answers of one conversation, given (turn, text up to its prompt, text up to its end) of each."""
    text = ends.closed(answers[-1][2])
    spans = []
    for turn, prompt, through in [*answers[:-1], (*answers[-1][:2], text)]:
        if not text.startswith(prompt):
            raise _unclear(record, "the prompt it renders is not the beginning of the whole conversation")
        end = ends.find(text, len(prompt), through, turn)
        if end is None:
            raise _unclear(record, "an earlier turn is rendered differently once a later one follows")
        spans.append((len(prompt), end))
    return _Chat(text, tuple(spans))


def _unclear(record: Record, why: str) -> DatasetError:
    return DatasetError(
        f"Row {record.row:,}: with this model's chat template it is not clear where an answer begins and ends: {why}.",
        "Choose another model, or train on single-turn conversations.",
    )
