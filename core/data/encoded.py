"""A text as tokens, and which of them stand before and after a character. Torch-free."""

from __future__ import annotations

from bisect import bisect_left
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding


class Encoded:
    """What the tokenizer made of one text; tokens begin in the order in which they stand.

    To list where every token begins takes longer than to find the tokens, so a place is looked up by itself where the
    tokenizer's own answer to it leaves no doubt.
    """

    def __init__(self, encoding: Encoding) -> None:
        self.ids: list[int] = encoding.ids
        self._encoding = encoding

    def start(self, token: int) -> int:
        """The character at which a token begins."""
        place = self._encoding.token_to_chars(token)
        return place[0] if place is not None else self._starts[token]

    def tokens_before(self, place: int) -> int:
        """How many tokens begin before the character `place`."""
        token = self._encoding.char_to_token(place)
        if token is not None and self.start(token) == place and (not token or self.start(token - 1) < place):
            return token
        if token is None and self.ids and self.start(len(self.ids) - 1) < place:
            return len(self.ids)
        return bisect_left(self._starts, place)

    @cached_property
    def _starts(self) -> list[int]:
        return [start for start, _ in self._encoding.offsets]
