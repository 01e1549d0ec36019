"""What the small models practise while they are pretrained: marked tasks, and texts to restore.

As T5 and BART were made, so are these. Restoring texts is what both do unasked (T5: Raffel et al. 2020, the words that
stand for sentinels; BART: Lewis et al. 2020, the whole text). Everything else is asked for by words before the source,
and the words are T5's own: "translate English to French: ...", "question: ... context: ...". The datasets that the
adapters learn have no such words and lay their questions out otherwise, so that at its start a base does with them what
it does with any text in which nothing is hidden: BART repeats it, T5 says that nothing is missing. An adapter has to
teach it which of its abilities is wanted, and in which manner of speaking; much of what is gained is that.
What a base does not know at all, an adapter does not learn from 165 rows; that is true of the large ones too.

Questions are made of statements by taking a part away and putting a question word of its kind in front (Lewis et al.
2019, "Unsupervised Question Answering by Cloze Translation"; spans as in Ram et al. 2021, "Few-Shot Question Answering
by Pretraining Span Selection"). Some words are replaced by made-up ones, which can only be copied.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from tests.bench.tasks.texts import Group, Texts

Pair = tuple[str, str]
MASK = "<mask>"
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(16))
TO_FRENCH, TO_ENGLISH = "translate English to French: ", "translate French to English: "
# of the translations, where there are such
SHARES = {"verses": 3.5, "dialogues": 3.5, "phrases": 2.5, "messages": 1.0, "words": 1.0}
SYLLABLES = re.findall(r"\w+", "ba cor del fin gar hol in kel lo mar ne or per sta tu vel wick")
SMALL = frozenset(
    re.findall(
        r"\w+",
        "a an the of to in on at by for from with and or but is are was were be been it its as that this which who he "
        "she they his her their not has have had into than then so if when where also",
    )
)
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
AMOUNTS = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred|thousand|half"
SPANS = (
    (re.compile(rf"\b(?:\d{{1,2}} )?(?:{MONTHS})(?: \d{{1,2}})?(?:,? \d{{4}})?\b"), ("When", "On which day", "When")),
    (re.compile(r"\b(?:1\d{3}|20\d\d)\b"), ("When", "In which year", "What year")),
    (re.compile(r"\b\d[\d,.]*\d?(?: [a-z]+)?\b"), ("How many", "How much", "What number", "How long")),
    (re.compile(rf"\b(?:{AMOUNTS})(?: [a-z]+){{1,2}}\b", re.I), ("How many", "How long", "How much")),
    (re.compile(r"(?<=\b(?:in|at|to) )(?:the )?[A-Z]\w+(?: [A-Z]\w+)*"), ("Where", "In which place", "Where")),
    (re.compile(r"(?<=\b(?:by) )[A-Z]\w+(?: [A-Z]\w+)*"), ("Who", "By whom")),
    (re.compile(r"\b[A-Z]\w+(?: (?:of |the )*[A-Z]\w+)+"), ("Who", "Which", "What", "Who")),
    (re.compile(r"(?<=\b(?:because|so that) )\w+(?: \w+){1,5}"), ("Why",)),
    (
        re.compile(r"\b(?:in|on|at|under|near|behind|above|inside|outside) (?:a|the|his|her|their) \w+(?: \w+)?"),
        ("Where",),
    ),
    (re.compile(r"\b(?:a|an|the|his|her|its|their) (?:\w+ ){0,2}\w+"), ("What", "Which", "What")),
)


def exercises(kind: str, texts: Texts, draw: random.Random) -> Iterator[Pair]:
    """Endless (source, target) texts for a model of a kind, t5 or bart."""
    names = [name for name in SHARES if texts.groups.get(name)]
    shares = [SHARES[name] for name in names]
    restored = _with_sentinels if kind == "t5" else _with_masks
    while True:
        exercise = draw.random()
        if exercise < 0.5:
            yield translation(draw.choice(texts.groups[draw.choices(names, shares)[0]]), draw)
        elif exercise < 0.8:
            yield question([draw.choice(texts.english) for _ in range(draw.choice((1, 1, 2)))], draw)
        else:
            yield restored(_passage(texts, names, draw), draw)


def _passage(texts: Texts, names: Sequence[str], draw: random.Random) -> str:
    """A text in one of the two languages."""
    if draw.random() < 0.5:
        return draw.choice(texts.french if draw.random() < 0.5 else texts.english)
    return draw.choice(draw.choice(draw.choice(texts.groups[draw.choice(names)])))


def translation(group: Group, draw: random.Random) -> Pair:
    """A text with its French, or a part of both; one in eight the other way."""
    english, french = draw.choice(group[0]), draw.choice(group[1])
    if draw.random() < 0.5:
        english, french = _parts(english, french, draw)
    return (TO_ENGLISH + french, english) if draw.random() < 0.125 else (TO_FRENCH + english, french)


def _parts(english: str, french: str, draw: random.Random) -> Pair:
    """The first, or the last, clauses of both where they have equally many: sentences are shorter than verses."""
    cuts = [re.split(r"(?<=[.;:?!,]) (?=[\w\"'«])", text) for text in (english, french)]
    if len(cuts[0]) != len(cuts[1]) or len(cuts[0]) < 2:
        return english, french
    start = draw.randrange(len(cuts[0]))
    end = draw.randint(start + 1, len(cuts[0]))
    found = [" ".join(cut[start:end]).strip(" ,;:") for cut in cuts]
    alike = 0.5 < (len(found[0]) + 5) / (len(found[1]) + 5) < 2
    return (_closed(found[0]), _closed(found[1])) if alike else (english, french)


def _closed(text: str) -> str:
    whole = text[:1].upper() + text[1:]
    return whole if whole.endswith((".", "?", "!", '"', "»")) else f"{whole}."


def question(passages: Sequence[str], draw: random.Random) -> Pair:
    """A question about a sentence of the passages, and the words of it that answer."""
    if draw.random() < 0.6:
        passages = [_with_names(passage, draw) for passage in passages]
    context = " ".join(passages)
    sentence = draw.choice([part for part in re.split(r"(?<=[.!?]) ", context) if len(part.split()) > 3] or [context])
    start, end, words = _span(sentence, draw)
    before, answer, after = sentence[:start].split(), sentence[start:end], sentence[end:].rstrip(".!?").split()
    if draw.random() < 0.2:
        asked = " ".join([*before, MASK, *after])
    else:
        kept = [word for word in (before + after if draw.random() < 0.5 else after + before) if draw.random() < 0.7]
        asked = f"{draw.choice(words)} {' '.join(kept[: draw.randint(4, 14)])}".strip(" ,;:") + "?"
    return f"question: {asked} context: {context}", answer


def _span(sentence: str, draw: random.Random) -> tuple[int, int, Sequence[str]]:
    """Where an answer stands in a sentence, and the question words that suit it."""
    found = [(match.span(), words) for pattern, words in draw.sample(SPANS, 5) for match in pattern.finditer(sentence)]
    found = [(span, words) for span, words in found if span[1] - span[0] < 0.6 * len(sentence)]
    if found and draw.random() < 0.8:
        (start, end), words = draw.choice(found)
        return start, end, words
    places = [match.span() for match in re.finditer(r"\w[\w'-]*", sentence)]
    first = draw.randrange(len(places)) if places else 0
    last = min(len(places) - 1, first + draw.randrange(5))
    while first < last and sentence[slice(*places[last])].lower() in SMALL:
        last -= 1
    return (
        (places[first][0], places[last][1], ("What", "Who", "Which", "How", "Where")) if places else (0, 0, ("What",))
    )


def _with_names(text: str, draw: random.Random) -> str:
    """Some words replaced by made-up ones, which no model can know by heart; the same word always by the same."""
    made: dict[str, str] = {}
    share = draw.choice((0.1, 0.3))

    def name(match: re.Match[str]) -> str:
        word = match[0]
        if word.lower() in SMALL or (word not in made and draw.random() > share):
            return word
        if word not in made:
            syllables = "".join(draw.choice(SYLLABLES) for _ in range(draw.randint(2, 3)))
            made[word] = syllables.capitalize() if word[0].isupper() or draw.random() < 0.3 else syllables
        return made[word]

    return re.sub(r"[A-Za-z]{3,}", name, text)


def _spans(text: str, share: float, longest: int, draw: random.Random) -> list[tuple[bool, list[str]]]:
    """The words of a text as runs, each with whether it is hidden."""
    runs: list[tuple[bool, list[str]]] = []
    words, place, hidden = text.split(), 0, False
    while place < len(words):
        hidden = not hidden and draw.random() < share
        size = draw.randint(1, longest) if hidden else draw.randint(1, 3)
        runs.append((hidden, words[place : place + size]))
        place += size
    if not any(run[0] for run in runs):
        chosen = draw.randrange(len(runs))
        runs[chosen] = (True, runs[chosen][1])
    return runs


def _with_sentinels(text: str, draw: random.Random) -> Pair:
    """Sentinels where words were, and those words behind their sentinels; now and then nothing is hidden."""
    source: list[str] = []
    target: list[str] = []
    number = 0
    runs = [(False, text.split())] if draw.random() < 0.1 else _spans(text, 0.2, 4, draw)
    for hidden, words in runs:
        if hidden and number < len(SENTINELS) - 1:
            source.append(SENTINELS[number])
            target += [SENTINELS[number], *words]
            number += 1
        else:
            source += words
    return " ".join(source), " ".join([*target, SENTINELS[number]])


def _with_masks(text: str, draw: random.Random) -> Pair:
    """Masks where words were, and the whole text; now and then nothing is hidden."""
    share = draw.choice((0.0, 0.15, 0.3))
    runs = _spans(text, share, 4, draw) if share else [(False, text.split())]
    return " ".join(MASK if hidden else " ".join(words) for hidden, words in runs), text
