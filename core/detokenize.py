"""Token by token back to text, without ever showing half a character."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # what a decoder writes for bytes that are not a whole character yet


class Detokenizer:
    """Collects tokens; `text` is what they say so far and only ever grows.

    A token can be part of a character, and its text can depend on the one before it. So each step decodes a window that
    starts at the last part shown, and shows what is new only once it ends in a whole character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self._tokenizer = tokenizer
        self._window = 0  # first token that is decoded again
        self._shown = 0  # tokens whose text is shown

    def add(self, token: int) -> None:
        """Take one more token."""
        self.tokens.append(token)
        shown = self._decode(self.tokens[self._window : self._shown])
        whole = self._decode(self.tokens[self._window :])
        if len(whole) > len(shown) and not whole.endswith(BROKEN):
            self.text += whole[len(shown) :]
            self._window, self._shown = self._shown, len(self.tokens)

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)
