"""Where an assistant's turn ends in a rendered conversation. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from core.data.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TurnEnds:
    """The special tokens of one tokenizer, any of which may end a turn, and its own end token."""

    special: re.Pattern[str]  # white space, then one special token
    eos: str
    names: tuple[str, ...] = ()  # where no special token can begin within another: what ends a text ends it as a token

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TurnEnds:
        """Collect the special tokens of a tokenizer."""
        added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        names = sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
        pattern = "|".join(re.escape(name) for name in names if name)
        special = re.compile(rf"\s*(?:{pattern})" if pattern else r"(?!)")
        return cls(special, tokenizer.eos_token or "", () if _overlap(names) else tuple(filter(None, names)))

    def closed(self, text: str) -> str:
        """The text of a conversation, with the end token added where its template ends with no special token.

        Without it a model trained with such a template would never stop.
        """
        bare = text.rstrip()
        if self.names:
            return text if bare.endswith(self.names) else bare + self.eos
        last = max((match.end() for match in self.special.finditer(bare)), default=-1)
        return text if last == len(bare) else bare + self.eos

    def find(self, text: str, start: int, through: str, turn: Message) -> int | None:
        """Where the answer that begins at `start` ends: after its words and the special token behind them.

        `through` is the conversation rendered up to this turn. Usually `text` begins with it. It need not, as some
        templates (Phi-3, Qwen3) write the last turn differently: then the words must stand right at the start, with
        the same special token behind them in both. None where that fails.
        """
        if turn.tool_calls:
            return self._end_of_calls(text, start, through)
        body = turn.content.strip()
        limit = len(through) if text.startswith(through) else len(text)
        at = _at_start(text, start, body)
        if text.startswith(through):
            at = at if at >= 0 else text.rfind(body, start, limit)
            match = self.special.match(text, at + len(body), limit) if at >= 0 else None
            return match.end() if match else start + len(text[start:limit].rstrip())
        match = self.special.match(text, at + len(body)) if at >= 0 else None
        if match is None or body + match.group() not in through[start:]:
            return None
        return match.end()

    def _end_of_calls(self, text: str, start: int, through: str) -> int | None:
        """Where tool calls end, which every template writes in its own way: at the last special token of the turn.

        What both renderings have in common is the turn, and perhaps what the template puts before the next one.
        """
        shared = _common_beginning(text[start:], through[start:])
        return max((start + match.end() for match in self.special.finditer(shared)), default=None)


def _at_start(text: str, start: int, body: str) -> int:
    """Where `body` stands if only white space comes before it, else -1."""
    while start < len(text) and text[start].isspace() and not text.startswith(body, start):
        start += 1
    return start if text.startswith(body, start) else -1


def _common_beginning(one: str, other: str) -> str:
    return one[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))]


def _overlap(names: Sequence[str]) -> bool:
    """Whether the end of one can be the beginning of another, or white space stands at an end."""
    starts = {name[:length] for name in names for length in range(1, len(name))}
    ends = (name[-length:] for name in names for length in range(1, len(name)))
    return any(name != name.strip() for name in names) or any(end in starts for end in ends)
