"""Where the answers of conversations are, in their text and in its tokens.

What is trained follows from the boundaries of the messages, never from searching for markers: the conversation is
rendered up to the prompt of an answer and up to its end, one must be the beginning of the other, and so must their
tokens. Where that does not hold the row is refused, for a guess would train on the wrong tokens unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from core.data.encoded import Encoded
from core.data.prompt_tokens import prompt_tokens
from core.data.records import Message, Record
from core.data.rendering import beginning, encode, encode_with_places, end_id, plain_parts, render
from core.data.turn_ends import TurnEnds
from core.data.word_tokens import Masked, Span, WordTokens
from core.errors import DatasetError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Chat:
    """A rendered conversation: where each answer begins and ends in its text."""

    text: str
    spans: tuple[Span, ...]


def rendered(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, ends: TurnEnds) -> list[Chat | None]:
    """The records' conversations in the words of the chat template; None for what takes none.

    Raises DatasetError naming the row whose answers cannot be told from its prompts, or which the template refuses.
    """
    chats = iter(_rendered([record for record in records if _takes_template(record, tokenizer)], tokenizer, ends))
    return [next(chats) if _takes_template(record, tokenizer) else None for record in records]


def _takes_template(record: Record, tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(record.messages and tokenizer.chat_template)


def masked(
    records: Sequence[Record],
    chats: Sequence[Chat | None],
    tokenizer: PreTrainedTokenizerBase,
    words: WordTokens | None,
) -> list[Masked]:
    """The tokens of each record, and which of them are its answers' (of a plain text: all).

    Raises DatasetError naming the row whose prompts have other tokens once an answer follows them.
    """
    pairs = [(record, chat) for record, chat in zip(records, chats, strict=True) if chat is not None]
    quick = words.masked([(chat.text, chat.spans) for _, chat in pairs]) if words else [None] * len(pairs)
    others = _templated([pair for pair, one in zip(pairs, quick, strict=True) if one is None], tokenizer)
    templated = (one or next(others) for one in quick)
    found: list[Masked] = []
    for record, chat in zip(records, chats, strict=True):
        if chat is not None:
            found.append(next(templated))
        elif record.messages:
            found.append(_plain_chat(record, tokenizer))
        else:
            ids = [*beginning(tokenizer), *encode([record.text], tokenizer)[0], end_id(tokenizer)]
            found.append((ids, [(0, len(ids))]))
    return found


def _plain_chat(record: Record, tokenizer: PreTrainedTokenizerBase) -> Masked:
    try:
        parts = plain_parts(_answered(record), tokenizer)
    except DatasetError as error:
        raise DatasetError(f"Row {record.row:,}: {error.what}", error.fix) from error
    ends = accumulate(len(ids) for ids, _ in parts)
    answers = [(end - len(ids), end) for (ids, is_answer), end in zip(parts, ends, strict=True) if is_answer]
    return [token for ids, _ in parts for token in ids], answers


def _answered(record: Record) -> tuple[Message, ...]:
    """The turns up to the last answer; a question after it has nothing to teach."""
    turns = record.messages
    while turns and turns[-1].role != "assistant":
        turns = turns[:-1]
    if not turns:
        raise DatasetError(f"Row {record.row:,} has no answer to train on.", "Add an assistant turn, or skip bad rows.")
    return turns


def _templated(pairs: Sequence[tuple[Record, Chat]], tokenizer: PreTrainedTokenizerBase) -> Iterator[Masked]:
    texts = [chat.text for _, chat in pairs]
    encoded = encode_with_places(texts, tokenizer)
    prompts = prompt_tokens(texts, encoded, [[start for start, _ in chat.spans] for _, chat in pairs], tokenizer)
    for (record, chat), tokens, firsts in zip(pairs, encoded, prompts, strict=True):
        answers = [(first, end) for first, (_, end) in zip(firsts, chat.spans, strict=True) if first is not None]
        if len(answers) == len(chat.spans):
            yield tokens.ids, [(first, _stop(tokens, first, end)) for first, end in answers]
        elif any(char.isspace() for start, _ in chat.spans for char in chat.text[max(start - 1, 0) : start + 1]):
            yield _in_parts(chat, tokenizer)
        else:
            raise _unclear(record, "its tokens differ with and without the answer")


def _stop(tokens: Encoded, first: int, end: int) -> int:
    """Where the answer stops whose first token and the character after whose last are given."""
    return max(first, tokens.tokens_before(end))  # the template's newline starts at the end, and stays out


def _in_parts(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> Masked:
    """Tokenise prompts and answers apart, as generation does.

    For white space where an answer begins, such as the indent of code, or the blank line of a prompt: many tokenizers
    join it with what follows, and so change the prompt's tokens.
    """
    cuts = [0, *(start for start, _ in chat.spans), len(chat.text)]
    parts = encode_with_places([chat.text[a:b] for a, b in pairwise(cuts)], tokenizer)
    firsts = accumulate(len(part.ids) for part in parts)
    answers = [
        (first, first + _stop(part, 0, end - start))
        for first, (start, end), part in zip(firsts, chat.spans, parts[1:], strict=False)
    ]
    return [token for part in parts for token in part.ids], answers


def _rendered(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, ends: TurnEnds) -> list[Chat]:
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


def _chat(record: Record, answers: Sequence[tuple[Message, str, str]], ends: TurnEnds) -> Chat:
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
    return Chat(text, tuple(spans))


def _unclear(record: Record, why: str) -> DatasetError:
    return DatasetError(
        f"Row {record.row:,}: with this model's chat template it is not clear where an answer begins and ends: {why}.",
        "Choose another model, or train on single-turn conversations.",
    )
