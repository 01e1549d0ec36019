"""Who and what a sentence is about: subjects, and nouns with their article and adjective, in both languages."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.tasks.lexicon import AFTER, BEFORE, NUMBERS, PERSONS, PLACES, TOWARDS, VOWEL, Noun, Pair


@dataclass(frozen=True)
class Subject:
    """Who does something: the French person (0 to 5), gender and number."""

    english: str
    french: str
    person: int
    feminine: bool = False
    plural: bool = False

    @property
    def third(self) -> bool:
        """Whether the English verb takes an s."""
        return self.person == 2


_PRONOUNS = (
    Subject("I", "je", 0), Subject("you", "tu", 1), Subject("he", "il", 2), Subject("she", "elle", 2, True),
    Subject("we", "nous", 3, plural=True), Subject("you", "vous", 4), Subject("they", "ils", 5, plural=True),
    Subject("they", "elles", 5, True, True), Subject("I", "je", 0, True),
)  # fmt: skip
_OWNERS = (
    ("my", "mon", "ma", "mes"),
    ("your", "ton", "ta", "tes"),
    ("his", "son", "sa", "ses"),
    ("her", "son", "sa", "ses"),
    ("our", "notre", "notre", "nos"),
    ("your", "votre", "votre", "vos"),
    ("their", "leur", "leur", "leurs"),
)


def finished(text: str) -> str:
    """One space between words, none before the full stop, a capital in front."""
    tidy = re.sub(r"\s+", " ", text).replace("\u00a0", " ").replace(" .", ".").strip()
    return tidy[0].upper() + tidy[1:]


def elided(text: str) -> str:
    """Vowels and articles run together as they must: j'ai, l'eau, du pain, aux enfants."""
    for apart, together in (
        (" de le (?=[^aeiouyhâéêœ])", " du "),
        (" à le (?=[^aeiouyhâéêœ])", " au "),
        (" de les ", " des "),
        (" à les ", " aux "),
    ):
        text = re.sub(apart, together, text)
    return re.sub(rf"\b([JjNnLlDdMmTtSs]|[Qq]u)[ea] (?=[{VOWEL}h])(?!haricot)", r"\1'", text)


def subject(draw: random.Random) -> Subject:
    """A pronoun, or someone."""
    if draw.random() < 0.55:
        return draw.choice(_PRONOUNS)
    noun, many = draw.choice(PERSONS), draw.random() < 0.25
    english, french = owned(noun, many, draw) if draw.random() < 0.7 else the(noun, many)
    return Subject(english, french, 5 if many else 2, noun.feminine, many)


def the(noun: Noun, many: bool = False) -> Pair:
    """A noun with its definite article."""
    article = "les" if many else "la" if noun.feminine else "le"
    return f"the {noun.english[many]}", f"{article} {noun.french[many]}"


def owned(noun: Noun, many: bool, draw: random.Random) -> Pair:
    """A noun with whose it is."""
    english, his, hers, theirs = draw.choice(_OWNERS)
    before_vowel = noun.french[0][0] in VOWEL + "h"
    mine = theirs if many else hers if noun.feminine and not (before_vowel and hers in ("ma", "ta", "sa")) else his
    return f"{english} {noun.english[many]}", f"{mine} {noun.french[many]}"


def a(english: str) -> str:
    """An English noun with its indefinite article."""
    return f"an {english}" if english[0] in "aeiou" else f"a {english}"


def thing(nouns: Sequence[Noun], draw: random.Random) -> Pair:
    """A noun with its article, and perhaps an adjective."""
    noun, many, kind = draw.choice(nouns), draw.random() < 0.25, draw.random()
    if kind < 0.3:
        return owned(noun, many, draw)
    if kind < 0.4 and len(nouns) > 1:
        number = draw.choice(NUMBERS)
        return f"{number[0]} {noun.english[1]}", f"{number[1]} {noun.french[1]}"
    english, french = noun.english[many], noun.french[many]
    if draw.random() < 0.35:
        english, french = _described(noun, many, draw)
    if kind < 0.7:
        if many:
            starts_before = french.split()[0] in {form[1] for _, *both in BEFORE for form in both}
            return f"some {english}", f"{'de' if starts_before else 'des'} {french}"
        return a(english), f"{'une' if noun.feminine else 'un'} {french}"
    article = "les" if many else "la" if noun.feminine else "le"
    return f"the {english}", f"{article} {french}"


def _described(noun: Noun, many: bool, draw: random.Random) -> Pair:
    english, his, hers = draw.choice((*BEFORE, *AFTER))
    form = (hers if noun.feminine else his)[many]
    if (english, his, hers) in BEFORE:
        if not noun.feminine and not many and noun.french[0][0] in VOWEL + "h":
            form = {"nouveau": "nouvel", "vieux": "vieil", "beau": "bel"}.get(form, form)
        return f"{english} {noun.english[many]}", f"{form} {noun.french[many]}"
    return f"{english} {noun.english[many]}", f"{noun.french[many]} {form}"


def where(draw: random.Random) -> Pair:
    """Where something is done."""
    if draw.random() < 0.5:
        english, french = the(draw.choice(TOWARDS))
        return f"at {english}", f"à {french}"
    noun = draw.choice(PLACES)
    english, french = the(noun)
    on = noun.english[0] in ("train", "bus", "plane")
    return f"{'on' if on else 'in'} {english}", f"dans {french}"


def third(base: str) -> str:
    """An English verb as he, she or it has it."""
    word, _, rest = base.partition("\u00a0")
    if word.endswith(("s", "sh", "ch", "x", "o")):
        word += "es"
    elif word.endswith("y") and word[-2] not in "aeiou":
        word = f"{word[:-1]}ies"
    else:
        word += "s"
    return f"{word} {rest}".strip()


def this(noun: Noun) -> str:
    """The French demonstrative before a masculine noun."""
    return "cet" if noun.french[0][0] in VOWEL + "h" else "ce"
