"""Every visible string in every language of the page; the JSON files beside this one hold them."""

from __future__ import annotations

import json
import re
from functools import cache, lru_cache
from pathlib import Path

LANGUAGES = {"en": "English", "zh": "中文"}
LOCALES = {"en": "en", "zh": "zh-CN"}  # what a browser calls them


@cache
def _strings(file_name: str) -> dict[str, str]:
    return dict(json.loads((Path(__file__).parent / file_name).read_text(encoding="utf-8")))


@cache
def _patterns(file_name: str) -> list[tuple[re.Pattern[str], str]]:
    """Every known sentence as a pattern, those with the most words of their own first."""
    known = sorted(_strings(file_name).items(), key=lambda item: -len(item[0].replace("{}", "")))
    return [(re.compile("(.+?)".join(map(re.escape, key.split("{}"))), re.DOTALL), text) for key, text in known]


@lru_cache(maxsize=2048)
def _translated(english: str, file_name: str) -> str:
    """A sentence, and what stands in it as values: "Line 3 of a.csv: The column 'text' is missing."."""
    for pattern, text in _patterns(file_name):
        match = pattern.fullmatch(english)
        if match is not None:
            values = (_translated(value, file_name) if " " in value else value for value in match.groups())
            return _filled(text, tuple(values))
    if english.endswith(".") and (clause := _translated(english[:-1], file_name)) != english[:-1]:
        return f"{clause}。"
    return english


def _filled(text: str, values: tuple[str, ...]) -> str:
    """`text` with `{}` (in turn) and `{0}` (by number) replaced; any other brace is a brace."""
    waiting = iter(values)
    return re.sub(r"\{(\d*)\}", lambda place: values[int(place[1])] if place[1] else next(waiting), text)


@cache
def _labels(file_name: str) -> dict[str, str]:
    """What the form calls each setting, by its name; not those that two fields of the form share."""
    labels: dict[str, set[str]] = {}
    for key, label in _strings(file_name).items():
        section, _, name = key.partition(".")
        if section in ("field", "option"):
            labels.setdefault(name, set()).add(label)
    return {name: f"“{found.pop()}”" for name, found in labels.items() if len(found) == 1}


@cache
def _names(file_name: str) -> re.Pattern[str]:
    """Names of settings: any before what it is ("r is 3."), and elsewhere those that no word, file or value can be."""
    every = "|".join(_labels(file_name))
    plain = "|".join(name for name in _labels(file_name) if "_" in name)
    return re.compile(rf"^(?:{every})(?= is | 的值为| 为空)|(?<![\w'./-])(?:{plain})(?![\w'/-]|\.\w)", re.ASCII)


def of_gradio(language: str) -> dict[str, str]:
    """What Gradio's page says in English in every language, with `{}` for values, in `language`; none for English."""
    return {} if language == "en" else _strings(f"gradio_{language}.json")


class Translator:
    """The strings of one language; calling it with a key gives the text.

    A page is built once per language, because text that the server makes (plans, tables, errors) must follow the
    chosen language too, which `gr.I18n` cannot do: it translates labels in the browser only.
    """

    def __init__(self, language: str = "en") -> None:
        if language not in LANGUAGES:
            raise ValueError(f"no strings for the language {language!r}")
        self.language = language

    def __call__(self, key: str, **values: object) -> str:
        """The text of `key` with `{name}` places filled in; KeyError when the key does not exist."""
        text = _strings(f"{self.language}.json")[key]
        return text.format(**values) if values else text

    def known(self, key: str, fallback: str) -> str:
        """The text of `key`, or `fallback` for what has no translation, such as a format added by a plug-in."""
        return _strings(f"{self.language}.json").get(key, fallback)

    def sentence(self, english: str) -> str:
        """A sentence of the core or the service in this language; the English one where no translation fits.

        Those packages know no languages. `sentences_*.json` maps their sentences, with `{}` where a value stands.
        A setting is called as the form calls it.
        """
        said = english if self.language == "en" else _translated(english, f"sentences_{self.language}.json")
        labels = _labels(f"{self.language}.json")
        return _names(f"{self.language}.json").sub(lambda name: labels[name[0]], said)

    def help(self, field: str, english: str) -> str:
        """The help of a setting; English comes from the config itself, which stays its one source."""
        return english if self.language == "en" else _strings(f"help_{self.language}.json").get(field, english)
