"""The tokens of rendered conversations, put together from the tokens of their words.

A text is split at special tokens before anything else happens to it. What stands between two of them, a segment, is
split by a pattern, and may be cut where no match of that pattern goes on (`_CUT`): each piece becomes the same tokens
wherever it stands. Words come again and again, so most are looked up, which takes far less time than the tokenizer.
"""

from __future__ import annotations

import json
import re
import sys
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core.data.rendering import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEPT = 1 << 17  # pieces, of up to 250 bytes each; what comes often comes early, so that those are never exchanged
LONGEST = 40  # characters of a piece that is kept: Chinese has no spaces, and its sentences do not come again
TRIED = 200_000  # characters, after which it shows whether words come again
TOGETHER = 64  # pieces in one text, whose time grows faster than its length
ID_BYTES = 4

Span = tuple[int, int]  # from, to before
Masked = tuple[Sequence[int] | NDArray[np.int32], list[Span]]  # token ids, and those of the answers

# Before a space that follows anything else, before white space after a letter or digit (with a full stop it may join),
# and before the last space of white space, which joins with the letter behind it.
_BEFORE_SPACES = re.compile(r"(?<=\S)(?= )")
_CUT = re.compile(r"(?<=\S)(?= )|(?<=[A-Za-z0-9])(?=\s)|(?<=\s)(?= [A-Za-z])")
_LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# What patterns choose from, in the tokenizers of GPT-2, GPT-4, Llama 3, Qwen and their kin. Each takes a space as its
# first character only, or else within white space, and line ends with nothing before them but white space or signs.
_ALTERNATIVES = (
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _ENDINGS, r"'(?i:[sdmt]|ll|ve|re)",
    r" ?\p{L}+", r" ?\p{N}+", r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS[0]}*{_LETTERS[1]}+{_ENDINGS}?",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS[0]}+{_LETTERS[1]}*{_ENDINGS}?",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
)  # fmt: skip
_ONE = "|".join(map(re.escape, _ALTERNATIVES))
_PATTERN = re.compile(rf"(?:{_ONE})(?:\|(?:{_ONE}))*")


class WordTokens:
    """The pieces of one tokenizer, learned as they come; several threads may ask."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.content}
        names = sorted(added, key=len, reverse=True)  # of those that begin at one place, the longest is taken
        self._special = re.compile(f"({'|'.join(map(re.escape, names))})" if names else r"((?!))")
        self._words = {"": b""}  # pieces that no white space ends, behind which a cut before a space is always right
        self._known = {"": b""}  # all pieces, and the special tokens
        self._known |= {name: number.to_bytes(ID_BYTES, sys.byteorder) for name, number in added.items()}
        self._asked = self._new = 0  # characters of texts, and of pieces that were not known
        self._joint = next(filter(_is_alone, names), "")
        self._joint_id = added.get(self._joint, -1)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> WordTokens | None:
        """Those of a tokenizer that is known to make the same tokens of pieces as of whole texts, else None."""
        return cls(tokenizer) if _is_cut_at_spaces(tokenizer) else None

    @property
    def pays(self) -> bool:
        """Whether words come again, which those of code and of languages without spaces may not do."""
        return self._asked < TRIED or 2 * self._new < self._asked

    def masked(self, chats: Sequence[tuple[str, Sequence[Span]]]) -> list[Masked | None]:
        """The tokens of each text, of which the spans of its answers' characters are given, and theirs.

        None where an answer ends at no special token, or where the text up to its beginning, tokenised by itself, is
        not the beginning of the text's tokens; and of all where it does not pay.
        """
        if not self.pays:
            return [None] * len(chats)
        self._asked += sum(len(text) for text, _ in chats)
        divided = [self._special.split(text) for text, _ in chats]  # segments; at odd places, special tokens
        found: list[Masked | None] = []
        for (_, spans), parts, tokens in zip(chats, divided, self._tokens(divided), strict=True):
            answers = self._answers(spans, parts, tokens)
            found.append((np.frombuffer(b"".join(tokens), np.int32), answers) if answers is not None else None)
        return found

    def _answers(self, spans: Sequence[Span], parts: Sequence[str], tokens: Sequence[bytes]) -> list[Span] | None:
        starts = list(accumulate(map(len, parts), initial=0))
        before = list(accumulate(map(len, tokens), initial=0))
        answers = []
        for start, end in spans:
            at, stop = bisect_left(starts, start), bisect_left(starts, end)
            first = before[at]
            if starts[at] != start:  # within a part, as templates write a role and a line end before an answer
                prompt = self._prompt(parts[at - 1][: start - starts[at - 1]])
                if at % 2 == 0 or not tokens[at - 1].startswith(prompt):
                    return None
                first = before[at - 1] + len(prompt)
            if starts[stop] != end or stop % 2:
                return None
            answers.append((first // ID_BYTES, before[stop] // ID_BYTES))
        return answers

    def _prompt(self, segment: str) -> bytes:
        return self._known.get(segment) or self._tokens([[segment]])[0][0]

    def _tokens(self, divided: Sequence[Sequence[str]]) -> list[list[bytes]]:
        """The tokens of each part of each text; all that is new is given to the tokenizer at once."""
        found: list[list[Any]] = [list(map(self._known.get, parts)) for parts in divided]
        new = []
        for own, parts in zip(found, divided, strict=True):
            for at, part in enumerate(parts):
                if own[at] is None:
                    own[at] = self._quick(part)
                    if own[at] is None:
                        new.append((own, at, part))
        cut = [_BEFORE_SPACES.split(part) for _, _, part in new]
        words = self._learned({word for pieces in cut for word in pieces if word not in self._known})
        for (own, at, _), pieces in zip(new, cut, strict=True):
            own[at] = b"".join([words[piece] if piece in words else self._known[piece] for piece in pieces])
        return found

    def _quick(self, segment: str) -> bytes | None:
        """The tokens of a segment cut before each of its spaces; None where that may be wrong, or is not known."""
        if "\0" in segment:
            return None
        *words, last = segment.replace(" ", "\0 ").split("\0")
        try:
            return b"".join(map(self._words.__getitem__, words)) + self._known[last]
        except KeyError:
            return None

    def _learned(self, words: Collection[str]) -> Mapping[str, bytes]:
        """The tokens of words that are not known, out of their pieces."""
        cut = {word: _CUT.split(word) for word in words}
        new = list({piece for pieces in cut.values() for piece in pieces if piece not in self._known})
        self._new += sum(map(len, new))
        fresh = dict(zip(new, self._made(new), strict=True))
        self._keep(fresh)
        found = {
            word: b"".join([fresh[piece] if piece in fresh else self._known[piece] for piece in pieces])
            for word, pieces in cut.items()
        }
        self._keep(found)
        return found

    def _keep(self, found: Mapping[str, bytes]) -> None:
        """Remember pieces while there is room."""
        for piece, tokens in found.items():
            if len(piece) <= LONGEST and len(self._known) < KEPT:
                self._known[piece] = tokens
                if not piece[-1:].isspace():
                    self._words[piece] = tokens

    def _made(self, pieces: Sequence[str]) -> list[bytes]:
        """The tokens of pieces; a text of some with a special token between two takes less time than many texts."""
        size = TOGETHER if self._joint else 1
        rows = [pieces[at : at + size] for at in range(0, len(pieces), size)]
        found: list[bytes] = []
        for row, ids in zip(rows, self._encoded([self._joint.join(row) for row in rows]), strict=True):
            parts = np.array(ids, np.int32)
            cuts = (np.flatnonzero(parts == self._joint_id) * ID_BYTES).tolist()
            if len(cuts) != len(row) - 1:  # the end of a piece and the beginning of the special token were another one
                found += (np.array(own, np.int32).tobytes() for own in self._encoded(row))
                continue
            content, starts = parts.tobytes(), [0, *(place + ID_BYTES for place in cuts)]
            found += (content[start:end] for start, end in zip(starts, [*cuts, None], strict=True))
        return found

    def _encoded(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """As `encode` does it, but for the offsets of characters, which nobody asks for here."""
        encode([""], self._tokenizer)  # undoes the padding and truncation that another caller may have left on
        made = self._tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return (encoding.ids for encoding in made)


def _is_alone(name: str) -> bool:
    """Whether a special token cannot overlap itself, so that joining texts with it never finds it elsewhere."""
    return not any(name.endswith(name[:length]) for length in range(1, len(name)))


def _is_cut_at_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether all that the tokenizer does to a text is known to allow such cuts."""
    from tokenizers import models, normalizers

    given: Any = tokenizer
    backend, added = given.backend_tokenizer, given.added_tokens_decoder.values()
    if any(token.lstrip or token.rstrip or token.single_word or re.search(r"\s", token.content) for token in added):
        return False
    kinds = {bool(token.normalized) for token in added}  # those of one kind are looked for before those of the other
    if len(kinds) > 1 or getattr(given, "split_special_tokens", False):
        return False
    if backend.normalizer is not None and (True in kinds or not isinstance(backend.normalizer, normalizers.NFC)):
        return False
    if not isinstance(backend.model, models.BPE) or backend.model.dropout is not None or backend.pre_tokenizer is None:
        return False
    steps = list(_steps(json.loads(backend.pre_tokenizer.__getstate__())))
    return any(map(_cuts, steps)) and all(map(_allows_cuts, steps))


def _steps(pre_tokenizer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if pre_tokenizer["type"] == "Sequence":
        for step in pre_tokenizer["pretokenizers"]:
            yield from _steps(step)
    else:
        yield pre_tokenizer


def _cuts(step: Mapping[str, Any]) -> bool:
    """Whether a step begins a piece at every such space, as a pattern does that matches any white space."""
    pattern = step.get("pattern", {}).get("Regex", "")
    return bool(step.get("use_regex")) or pattern.endswith(r"|\s+")


def _allows_cuts(step: Mapping[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"]
    if step["type"] == "Split":
        plain = step["behavior"] == "Isolated" and not step["invert"]
        return plain and bool(_PATTERN.fullmatch(step["pattern"].get("Regex", "")))
    return bool(step["type"] == "Digits")
