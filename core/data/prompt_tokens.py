"""Where the answers of a tokenised conversation begin, checked against the tokens of the prompts before them.

Special tokens split a text before anything else happens to it, and what stands between two of them is tokenised by
itself. So of a prompt only what follows its last special token has to be tokenised again: mostly the same few words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from core.data.encoded import Encoded
from core.data.rendering import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_tokens(
    texts: Sequence[str],
    encoded: Sequence[Encoded],
    places: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[list[int | None]]:
    """How many tokens stand before each of the `places` (characters) of each text.

    None where the text up to there, tokenised by itself, is not the beginning of the whole text's tokens.
    """
    known = tokenizer.added_tokens_decoder.items()
    special = {number: token.content for number, token in known if token.special and not token.normalized}
    tails = [
        [_tail(text, one, place, special) for place in ats]
        for text, one, ats in zip(texts, encoded, places, strict=True)
    ]
    different = list(dict.fromkeys(tail for row in tails for _, tail in row))
    tokens = dict(zip(different, encode(different, tokenizer), strict=True))
    for one, row in zip(encoded, tails, strict=True):
        ends = [(first, first + len(tokens[tail]), tokens[tail]) for first, tail in row]
        yield [end if one.ids[first:end] == own else None for first, end, own in ends]


def _tail(text: str, encoded: Encoded, place: int, special: Mapping[int, str]) -> tuple[int, str]:
    """The last special token that starts before a place, or else the first token, and the text from there on.

    The text is looked at as well, for a byte that is written with the token <0x41> may be one of the special ones.
    """
    for token in range(encoded.tokens_before(place) - 1, 0, -1):
        content = special.get(encoded.ids[token])
        if content is not None and text.startswith(content, start := encoded.start(token)):
            return token, text[start:place]
    return 0, text[:place]
