"""Everyday English sentences with their French, out of a small grammar (own work).

What packages hold of both languages is scripture, games and programs. This grammar adds kitchens, streets, families
and timetables. Its author had seen some two dozen rows of the translations that the adapters learn, so the choice of
everyday words is not quite blind; the sentences are: no five English words in a row are those of a row, and only ten
words of the dataset are in the lexicon alone. It says odd things, in correct French.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from tests.bench.tasks.grammar import a, elided, finished, owned, subject, the, thing, third, this, where
from tests.bench.tasks.lexicon import (
    AFTER,
    ALONE,
    EATEN,
    FOODS,
    HANDLED,
    MOODS,
    NUMBERS,
    PAST,
    PERSONS,
    SAYINGS,
    SOON,
    SPANS,
    STUFF,
    THINGS,
    TOWARDS,
    USUAL,
    WEATHER,
    Pair,
    Verb,
)

_AVOIR, _ETRE = ("ai", "as", "a", "avons", "avez", "ont"), ("suis", "es", "est", "sommes", "êtes", "sont")
_ALLER, _DEVOIR = (
    ("vais", "vas", "va", "allons", "allez", "vont"),
    ("dois", "dois", "doit", "devons", "devez", "doivent"),
)
_POUVOIR = ("peux", "peux", "peut", "pouvons", "pouvez", "peuvent")
_VOUDRAIT = ("voudrais", "voudrais", "voudrait", "voudrions", "voudriez", "voudraient")
_GO = Verb(("go", "went", "gone"), "aller", "allé", _ALLER)


def phrase(draw: random.Random) -> Pair:
    """A sentence and its French; now and then two of them in one."""
    english, french = draw.choices(_SENTENCES, _WEIGHTS)[0](draw)
    if draw.random() < 0.12 and english[-1] == "." and len(english) < 60:
        word, mot = draw.choice((("and", "et"), ("but", "mais"), ("because", "parce que")))
        more = _statement(draw)
        english, french = f"{english[:-1]} {word} {more[0][:-1]}.", f"{french[:-1]} {mot} {more[1][:-1]}."
    return finished(english), elided(finished(french))


def _activity(draw: random.Random) -> tuple[Verb, Pair]:
    kind = draw.random()
    if kind < 0.45:
        return draw.choice(HANDLED), thing(THINGS, draw)
    if kind < 0.65:
        return draw.choice(EATEN), thing(FOODS, draw)
    if kind < 0.75:
        english, french = the(draw.choice(TOWARDS))
        return _GO, (f"to {english}", f"à {french}")
    return draw.choice(ALONE), ("", "")


def _where_and_when(times: Sequence[Pair], draw: random.Random) -> Pair:
    place = where(draw) if draw.random() < 0.3 else ("", "")
    time = draw.choice(times) if draw.random() < 0.5 else ("", "")
    return f"{place[0]} {time[0]}", f"{place[1]} {time[1]}"


def _statement(draw: random.Random) -> Pair:
    """Someone does, did or will do something, or does not."""
    who, (verb, what), tense, no = subject(draw), _activity(draw), draw.random(), draw.random() < 0.15
    if what[1] and no and re.match(r"(un|une|des|de) ", what[1]):
        what = what[0].replace("some ", "any "), re.sub(r"^(un|une|des|de) ", "de ", what[1])
    ne, pas = ("ne", "pas") if no else ("", "")
    base, past, _ = verb.english
    if tense < 0.4:
        english = f"did not {base}" if no else past
        helper = _ETRE if verb is _GO else _AVOIR
        agreed = verb.participle + ("e" * who.feminine + "s" * who.plural if verb is _GO else "")
        french, times = f"{ne} {helper[who.person]} {pas} {agreed}", PAST
    elif tense < 0.65:
        english = f"{'does' if who.third else 'do'} not {base}" if no else third(base) if who.third else base
        french, times = f"{ne} {_halved(verb.present[who.person], pas)}", USUAL
    elif tense < 0.8:
        english = f"{'will not' if no else 'will'} {base}"
        french, times = f"{ne} {_ALLER[who.person]} {pas} {verb.infinitive}", SOON
    else:
        word, forms = draw.choice((("must", _DEVOIR), ("can", _POUVOIR), ("would like to", _VOUDRAIT)))
        no = no and word == "can"
        english = f"{'cannot' if no else word} {base}"
        french, times = f"{'ne' if no else ''} {forms[who.person]} {'pas' if no else ''} {verb.infinitive}", SOON
    rest = _where_and_when(times, draw)
    if verb is _GO:
        rest = draw.choice(times) if draw.random() < 0.5 else ("", "")
    return (
        f"{who.english} {english} {what[0]} {rest[0]}".strip() + ".",
        f"{who.french} {french} {what[1]} {rest[1]}".strip() + ".",
    )


def _halved(form: str, pas: str) -> str:
    """The negation stands behind the verb that is conjugated: ne fait pas cuire."""
    first, gap, rest = form.partition("\u00a0")
    return f"{first} {pas}{gap}{rest}" if pas and gap else f"{form} {pas}"


def _state(draw: random.Random) -> Pair:
    """Something, or someone, is somehow."""
    if draw.random() < 0.5:
        who, (english, his, hers) = subject(draw), draw.choice(MOODS)
        now, form = draw.random() < 0.6, (hers if who.feminine else his)[who.plural]
        been = (
            ("était", "étaient")[who.plural]
            if who.person in (2, 5)
            else ("étais", "étais", "", "étions", "étiez")[who.person]
        )
        be = (
            ("am" if who.english == "I" else "is" if who.third else "are")
            if now
            else ("was" if who.third or who.english == "I" else "were")
        )
        very, tres = (
            draw.choice((("", ""), ("very", "très"), ("too", "trop"))) if not form.startswith("en ") else ("", "")
        )
        return (
            f"{who.english} {be} {very} {english}.",
            f"{who.french} {_ETRE[who.person] if now else been} {tres} {form}.",
        )
    noun, many, (english, his, hers) = draw.choice((*THINGS, *FOODS)), draw.random() < 0.3, draw.choice(AFTER)
    what = the(noun, many) if draw.random() < 0.5 else owned(noun, many, draw)
    very, tres = draw.choice((("", ""), ("very", "très"), ("too", "trop"), ("not", "pas")))
    ne = "ne" if tres == "pas" else ""
    are, sont = ("are", "sont") if many else ("is", "est")
    return (
        f"{what[0]} {are} {very} {english}.",
        f"{what[1]} {ne} {sont} {tres} {(hers if noun.feminine else his)[many]}.",
    )


def _there_is(draw: random.Random) -> Pair:
    if draw.random() < 0.3:
        noun, place = draw.choice(STUFF), where(draw)
        return f"there is no {noun.english[0]} {place[0]}.", f"il n'y a pas de {noun.french[0]} {place[1]}."
    noun, many, place = draw.choice((*THINGS, *FOODS, *PERSONS)), draw.random() < 0.4, where(draw)
    if many:
        number = draw.choice(NUMBERS)
        return (
            f"there are {number[0]} {noun.english[1]} {place[0]}.",
            f"il y a {number[1]} {noun.french[1]} {place[1]}.",
        )
    return (
        f"there is {a(noun.english[0])} {place[0]}.",
        f"il y a {'une' if noun.feminine else 'un'} {noun.french[0]} {place[1]}.",
    )


def _asked(draw: random.Random) -> Pair:
    """A question."""
    kind = draw.randrange(7)
    noun, many = draw.choice((*THINGS, *FOODS)), draw.random() < 0.2
    what = owned(noun, many, draw) if draw.random() < 0.6 else the(noun, many)
    be, est = ("are", "sont") if many else ("is", "est")
    if kind == 0:
        return f"where {be} {what[0]}?", f"où {est} {what[1]} ?"
    if kind == 1:
        has, avez = draw.choice((("have you", "as-tu"), ("have you", "avez-vous")))
        verb = draw.choice(HANDLED)
        return f"{has} {verb.english[2]} {what[0]}?", f"{avez} {verb.participle} {what[1]} ?"
    if kind == 2:
        cost = (
            ("do these", "ces", "coûtent") if many else ("does this", "cette" if noun.feminine else this(noun), "coûte")
        )
        return f"how much {cost[0]} {noun.english[many]} cost?", f"combien {cost[2]} {cost[1]} {noun.french[many]} ?"
    if kind == 3:
        goal = the(draw.choice(TOWARDS))
        return draw.choice((
            (f"how do I get to {goal[0]}?", f"comment aller à {goal[1]} ?"),
            (f"is {goal[0]} far from here?", f"est-ce que {goal[1]} est loin d'ici ?"),
            (f"what time does {goal[0]} open?", f"à quelle heure ouvre {goal[1]} ?"),
            (f"when does {goal[0]} close?", f"quand ferme {goal[1]} ?"),
        ))  # fmt: skip
    if kind == 4:
        verb, aim = _activity(draw)
        can, peux = draw.choice(
            (("can you", "peux-tu"), ("could you", "pourriez-vous"), ("can we", "pouvons-nous"), ("may I", "puis-je"))
        )
        please, svp = (
            draw.choice((("", ""), (", please", ", s'il vous plaît"))) if peux == "pourriez-vous" else ("", "")
        )
        return f"{can} {verb.english[0]} {aim[0]}{please}?", f"{peux} {verb.infinitive} {aim[1]}{svp} ?"
    if kind == 5:
        verb, who = draw.choice(HANDLED), draw.choice((("who", "qui"),))[0]
        return f"{who} {verb.english[1]} {what[0]}?", f"qui a {verb.participle} {what[1]} ?"
    verb, aim = _activity(draw)
    why, pourquoi = draw.choice((("why", "pourquoi"), ("when", "quand"), ("where", "où")))
    helper = ("es-tu", "allé") if verb is _GO else ("as-tu", verb.participle)
    return f"{why} did you {verb.english[0]} {aim[0]}?", f"{pourquoi} {helper[0]} {helper[1]} {aim[1]} ?"


def _told(draw: random.Random) -> Pair:
    """A request or an order."""
    verb, what = draw.choice(HANDLED[:-3]) if draw.random() < 0.6 else draw.choice(EATEN), thing(THINGS, draw)
    if verb in EATEN:
        what = thing(FOODS, draw)
    kind = draw.random()
    if kind < 0.35:
        return f"{verb.english[0]} {what[0]}.", f"{verb.present[4]} {what[1]}."
    if kind < 0.55:
        return f"please {verb.english[0]} {what[0]}.", f"{verb.present[4]} {what[1]}, s'il vous plaît."
    if kind < 0.75:
        return f"do not forget to {verb.english[0]} {what[0]}.", f"n'oubliez pas de {verb.infinitive} {what[1]}."
    if kind < 0.9:
        return f"let's {verb.english[0]} {what[0]}.", f"{verb.present[3]} {what[1]}."
    return f"I need to {verb.english[0]} {what[0]}.", f"j'ai besoin de {verb.infinitive} {what[1]}."


def _lasting(draw: random.Random) -> Pair:
    """What goes on since, or for, some time; and the weather with what it leads to."""
    who = subject(draw)
    if draw.random() < 0.5:
        verb, span = draw.choice(ALONE), draw.choice(SPANS)
        word = "since" if span[0] in ("this morning", "Monday", "last year") else "for"
        have = "has" if who.third else "have"
        return (
            f"{who.english} {have} {verb.english[2]} {word} {span[0]}.",
            f"{who.french} {verb.present[who.person]} depuis {span[1]}.",
        )
    weather, (verb, what) = draw.choice(WEATHER), _activity(draw)
    return (f"{weather[0]}, so {who.english} will not {verb.english[0]} {what[0]}.",
            f"{weather[1]}, donc {who.french} ne {_ALLER[who.person]} pas {verb.infinitive} {what[1]}.")  # fmt: skip


def _short(draw: random.Random) -> Pair:
    english, french = draw.choice((*SAYINGS, *WEATHER))
    return f"{english}.", f"{french}."


_SENTENCES: tuple[Callable[[random.Random], Pair], ...] = (
    _statement,
    _state,
    _there_is,
    _asked,
    _told,
    _lasting,
    _short,
)
_WEIGHTS = (40, 12, 8, 18, 12, 9, 1)
