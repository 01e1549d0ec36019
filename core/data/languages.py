"""Which language a text is in, roughly: by its script, and for Latin letters by its most frequent words. Torch-free."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from core.data.records import Record

_READ = 600  # characters of a text are enough
_SCRIPTS = {
    "Chinese": "㐀-䶿一-鿿",
    "Japanese": "぀-ヿ",
    "Korean": "ᄀ-ᇿ가-힣",
    "Russian or another in Cyrillic": "Ѐ-ӿ",
    "Greek": "Ͱ-Ͽ",
    "Arabic": "؀-ۿ",
    "Hebrew": "֐-׿",
    "Hindi or another in Devanagari": "ऀ-ॿ",
    "Thai": "฀-๿",
}
_LETTERS = {name: re.compile(f"[{span}]") for name, span in _SCRIPTS.items()}
_LATIN = re.compile("[A-Za-zÀ-ɏ]")
_FREQUENT = {
    "English": "the of and to is in that it you for was with are this what how not have my your",
    "French": "le la les des est une dans que pour qui sur pas vous je avec il elle et au du",
    "German": "der die das und ist nicht ein eine zu den mit auf für sie ich von es im wie dem",
    "Spanish": "el los las que es una por con para no se del como más lo su al está pero muy",
    "Italian": "il che di non è per una sono con del la gli alla mi come più nel ho ma anche",
    "Portuguese": "o que não uma para com os em do da por mais como se na você dos ao é foi",
    "Dutch": "de het een van en is dat niet ik op te zijn voor met die er aan maar om ook",
}
_WORDS = {name: frozenset(words.split()) for name, words in _FREQUENT.items()}
_ALL_WORDS = frozenset().union(*_WORDS.values())
_WORD = re.compile(r"[^\W\d_]+")
_ASCII_WORDS = {code: chr(code) if chr(code).isalpha() else " " for code in range(128)}  # as _WORD, in a tenth the time
ENOUGH_WORDS = 3
ENOUGH_LETTERS = 4


def language_of(text: str) -> str:
    """The language's name, "" when it cannot be told."""
    text = text[:_READ]
    if not text.isascii():
        counts = {name: len(letters.findall(text)) for name, letters in _LETTERS.items()}
        if counts["Japanese"] * 8 > counts["Chinese"]:  # Japanese mixes its own letters with Chinese ones
            counts["Japanese"] += counts.pop("Chinese")
        best = max(counts, key=lambda name: counts[name])
        if counts[best] >= ENOUGH_LETTERS and counts[best] * 3 > len(_LATIN.findall(text)):
            return best
    return _by_words(text)


def _by_words(text: str) -> str:
    text = text.lower()
    words = text.translate(_ASCII_WORDS).split() if text.isascii() else _WORD.findall(text)
    known_words = _ALL_WORDS.intersection(words)
    if len(known_words) < ENOUGH_WORDS:
        return ""
    hits = sorted(((len(known_words & known), name) for name, known in _WORDS.items()), reverse=True)
    (most, name), (next_most, _) = hits[:2]
    return name if most >= ENOUGH_WORDS and most >= 2 * next_most else ""


Pattern = tuple[str, str]  # language of the questions, language of the answers


class UsualLanguages:
    """The pairs of languages that a dataset's first rows show to be usual in it."""

    MIN_ROWS = 40
    USUAL_SHARE = 0.05  # of the rows, from which on a pair is meant to be there

    def __init__(self, records: Iterable[Record]) -> None:
        counts = Counter(pattern(record) for record in records)
        known = Counter({pair: count for pair, count in counts.items() if any(pair)})
        total = sum(known.values())
        self._usual = [pair for pair, count in known.most_common() if count >= self.USUAL_SHARE * total]
        self._says = total >= self.MIN_ROWS and len(self._usual) <= 3

    def unusual(self, record: Record) -> str:
        """A sentence on a row in other languages than the rest; "" for a usual row."""
        if not self._says:
            return ""
        pair = pattern(record)
        if any(all(not one or not other or one == other for one, other in zip(pair, usual, strict=True))
               for usual in self._usual):  # fmt: skip
            return ""
        return f"The row is in {_named(pair)}; most are in {_named(self._usual[0])}."


def pattern(record: Record) -> Pattern:
    """The languages of a record's questions and of its answers."""
    if not record.messages:
        return language_of(record.text), ""
    said = {role: " ".join(turn.content[:_READ] for turn in record.messages if turn.role == role)
            for role in ("user", "assistant")}  # fmt: skip
    return language_of(said["user"]), language_of(said["assistant"])


def _named(pair: Pattern) -> str:
    return " and ".join(dict.fromkeys(name for name in pair if name))
