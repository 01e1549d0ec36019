"""Both languages say everything, nothing is unused, and the service's sentences are the ones that are translated."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import json
import re
import string
from collections.abc import Iterator, Mapping
from pathlib import Path

import gradio
import pytest

from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig
from core.data.detection import rule_of
from core.data.formats import formats
from core.methods import methods
from ui import forms
from ui.head import head
from ui.i18n import LANGUAGES, Translator, of_gradio

ROOT = Path(__file__).resolve().parents[2]
STRINGS = {code: json.loads((ROOT / f"ui/i18n/{code}.json").read_text("utf-8")) for code in LANGUAGES}
SOURCES = [path for path in (ROOT / "ui").rglob("*.py") if path.parent.name != "i18n"]


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def literal_keys() -> tuple[set[str], set[str]]:
    """Keys that stand in the source as they are, and the prefixes of those that are put together there."""
    whole, prefixes = set(), set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(r"[a-z]+\.[a-z0-9_]*[a-z0-9]", node.value):
                    whole.add(node.value)
            elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                start = str(node.values[0].value)
                if re.fullmatch(r"[a-z]+\.[a-z_]*", start):
                    prefixes.add(start)
    return whole, prefixes


def test_languages_have_the_same_keys_and_the_same_places() -> None:
    english, chinese = STRINGS["en"], STRINGS["zh"]
    assert english.keys() == chinese.keys()
    assert {k for k in english if places(english[k]) != places(chinese[k])} == set()
    assert {k for code in LANGUAGES for k, text in STRINGS[code].items() if not text.strip()} == set()


def test_no_key_is_missing() -> None:
    whole, _ = literal_keys()
    sections = {key.split(".")[0] for key in STRINGS["en"]}
    named = {key for key in whole if key.split(".")[0] in sections}
    assert len(named) > 150  # the scan itself works
    assert named - STRINGS["en"].keys() == set()


def test_no_key_is_unused() -> None:
    whole, prefixes = literal_keys()
    unused = {key for key in STRINGS["en"] if key not in whole and not any(key.startswith(p) for p in prefixes)}
    assert unused == set()


def test_chinese_is_chinese() -> None:
    same = {key for key in STRINGS["en"] if STRINGS["en"][key] == STRINGS["zh"][key]}
    # Names that are the same in both languages.
    allowed = {"choice.float32", "choice.bfloat16", "compare.top_p", "models.hash", "time.days"}
    allowed |= {key for key in same if key.startswith("field.")}
    assert same - allowed == set()
    assert {key for key in same if key.startswith("field.")} <= {
        "field.lora_alpha", "field.lora_dropout", "field.beta1", "field.beta2", "field.epsilon",
    }  # fmt: skip


def test_every_setting_has_a_label_and_a_chinese_help() -> None:
    named = {spec.name for spec in forms.fields()}
    helped = json.loads((ROOT / "ui/i18n/help_zh.json").read_text("utf-8"))
    labels = {f"option.{spec.leaf}" if spec.method else f"field.{spec.name}" for spec in forms.fields()}
    assert labels == {key for key in STRINGS["en"] if key.startswith(("field.", "option."))}
    assert helped.keys() == named
    t = Translator("en")
    for kind in (AdapterConfig, DataConfig, OptimConfig, TrainConfig):
        for field in dataclasses.fields(kind):
            if field.name in named:
                assert t.help(field.name, field.metadata["help"]) == field.metadata["help"]


@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_explained_in_chinese(name: str) -> None:
    """Its title unless that is a name such as LoRA, its hint, its summary, why it cannot be merged, its choices."""
    about, t = methods.get(name), Translator("zh")
    for words in (about.hint, about.summary, about.why_unmergeable()):
        assert not words or t.sentence(words) != words, words
    assert re.search("[\u4e00-\u9fff]", t.sentence(about.title)) or "LoRA" in about.title or " " not in about.title
    for spec in forms.options(name):
        for choice in spec.choices:
            assert f"choice.{choice}" in STRINGS["en"], f"{spec.name} {choice}"


@pytest.mark.parametrize("name", formats.names())
def test_every_format_and_its_columns_have_names(name: str) -> None:
    about = formats.get(name)
    assert f"format.{name}" in STRINGS["en"]
    for column in (*(names[0] for names in about.columns), *about.optional):
        assert f"column.{column}" in STRINGS["en"]


def test_unknown_language_and_key_are_refused() -> None:
    with pytest.raises(ValueError, match="xx"):
        Translator("xx")
    with pytest.raises(KeyError):
        Translator("en")("no.such.key")


# -- sentences of the core and the service


def templates() -> set[str]:
    """Every string of core and studio, with {} where an f-string puts a value."""
    found: set[str] = set()
    for package in ("core", "studio"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                    found.add("".join(parts))
    return found


def test_why_rows_are_of_a_format_is_said_in_chinese() -> None:
    t, rules = Translator("zh"), [f"{rule_of(name)}; they also fit alpaca" for name in formats.names()]
    for rule in rules:
        said = t.sentence(rule)
        assert said.startswith("各行含有列") and said.endswith("；也符合 alpaca")
        assert not re.search(r"\b(and|or)\b", said)
    assert t.sentence(rule_of("question_answer")) == f"各行含有列 {formats.get('question_answer').needs}"


def test_translated_sentences_exist() -> None:
    """A sentence that was reworded loses its translation; this says which."""
    sentences = json.loads((ROOT / "ui/i18n/sentences_zh.json").read_text("utf-8"))
    known = templates()
    # Sentences that the source puts together from pieces.
    composed = {
        "{} is {}; it must be between {} and {}.", "{} is {}; it must be at least {}.",
        "{} is {}; it must be at most {}.", "rows with the column {}", "rows with the columns {}",
        "Line {} of {}", "Row {} of {}", "Line {} of {}: {}", "Row {} of {}: {}",
        "There is no dataset {}.", "There is no adapter {}.", "Take the id from the list of datasets.",
        "Take the id from the list of models.", "Take the id from the list of adapters.",
        "Column {}: {}", "expecting property name enclosed in double quotes", "expecting value", "extra data",
        "expecting ',' delimiter", "expecting ':' delimiter", "unterminated string starting at",
        "invalid control character at", "{}; they also fit {}",
    }  # fmt: skip
    assert {key for key in sentences if key not in known} - composed == set()


# What has so few words of its own that its pattern would fit other sentences too.
TOO_GENERAL = {
    "{} belongs to {}.", "{} is {}.", "{} of {}: {}", "{}: {}", "{} has no {}.", "{} in {} is {}.",
    "There is no {} {}.",
}  # fmt: skip
# Only a terminal or a program of the user's own says these.
NOT_ON_THE_PAGE = ("studio/commands", "studio/demo.py", "core/articles.py", "core/ops")


def test_every_error_is_said_in_chinese() -> None:
    """What is written where an error, a failure or a check of the plan is made, with a word for each value."""
    t = Translator("zh")
    missing = {
        words: f"{path.relative_to(ROOT)}:{line}"
        for package in ("core", "studio")
        for path in sorted((ROOT / package).rglob("*.py"))
        if not path.relative_to(ROOT).as_posix().startswith(NOT_ON_THE_PAGE)
        for words, line in said_by_errors(ast.parse(path.read_text("utf-8")))
        if words not in TOO_GENERAL and not re.search("[\u4e00-\u9fff]", t.sentence(words.replace("{}", "7")))
    }
    assert missing == {}


def said_by_errors(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The sentences that errors, failures and checks are made with, and their lines."""
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for call in ast.walk(tree):
        name = call_name(call)
        if not isinstance(call, ast.Call) or (name not in ("Failure", "Check") and not name.endswith("Error")):
            continue
        if hasattr(builtins, name) or name.startswith("_"):
            continue
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        for argument in arguments[:3] if name == "Failure" else arguments:  # the fourth is a line of a log
            for words in literals(argument, constants):
                if re.search("[A-Za-z]{2}.* ", words.replace("{}", "")):
                    yield words, call.lineno


def call_name(node: ast.AST) -> str:
    called = node.func if isinstance(node, ast.Call) else None
    return called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""


def literals(node: ast.expr, constants: Mapping[str, ast.expr]) -> list[str]:
    """The strings that an expression may be, with {} where an f-string puts a value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)]
    if isinstance(node, ast.IfExp):
        return literals(node.body, constants) + literals(node.orelse, constants)
    if isinstance(node, ast.Name) and node.id in constants:
        return literals(constants[node.id], {})
    return []


def test_translations_use_every_value_once() -> None:
    sentences = json.loads((ROOT / "ui/i18n/sentences_zh.json").read_text("utf-8"))
    for english, chinese in sentences.items():
        count = english.count("{}")
        numbered = sorted(int(number) for number in re.findall(r"\{(\d+)\}", chinese))
        assert numbered == list(range(count)) if numbered else chinese.count("{}") == count, english


@pytest.mark.parametrize("language", [code for code in LANGUAGES if code != "en"])
def test_what_is_translated_of_gradio_is_what_it_says(language: str) -> None:
    """A newer Gradio that words it otherwise is noticed here."""
    folder = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
    bundle = "".join(path.read_text("utf-8") for path in folder.glob("*.js") if path.stat().st_size < 5_000_000)
    bundle = re.sub(r"\$\{e\.length>1\?`s`:``\}", "s", bundle)
    for said, text in of_gradio(language).items():
        parts = said.replace("type:", "types:").split("{}")
        assert all(part in bundle for part in parts), said
        assert said.count("{}") == text.count("{}") and re.search("[\u4e00-\u9fff]", text)
        assert json.dumps(said) in head(language) and json.dumps(text) in head(language)
    assert of_gradio("en") == {}


def test_sentence_keeps_the_values_in_place() -> None:
    t = Translator("zh")
    assert t.sentence("Line 3 of a.csv: two columns are called 'x'.") == "a.csv 第 3 行：有两列都叫 'x'。"
    assert t.sentence("r is 0; it must be between 1 and 4096.") == "“秩（rank）” 的值为 0，必须在 1 与 4096 之间。"
    assert t.sentence("Nobody translated this.") == "Nobody translated this."
    assert t.sentence("") == ""
    assert Translator("en").sentence("Training") == "Training"
    # A brace in a value is a brace, not a place.
    assert "{0}" in t.sentence("There is no job {0}.")


def test_settings_are_called_as_the_form_calls_them() -> None:
    english, chinese = Translator("en"), Translator("zh")
    assert english.sentence("r is 0; it must be between 1 and 4096.").startswith("“Rank” is 0;")
    assert english.sentence("epochs is empty.") == "“Epochs” is empty." and "训练轮数" in chinese.sentence(
        "epochs is empty."
    )
    assert chinese.sentence("r is 8 with lora.").startswith("“秩（rank）” 的值为 8，")
    lower = "Lower micro_batch_size or max_length, or pick a smaller model."
    assert english.sentence(lower).startswith("Lower “Micro-batch size” or “Longest example”,")
    dropout = "lora_dropout does not work with target_parameters."
    assert chinese.sentence(dropout).startswith("“Dropout” ") and english.sentence(dropout).startswith("“Dropout” ")
    # What is no setting's name stays: a word, a file, a value in quotes, a place in the YAML, a name of two settings.
    for kept in ("The seed is planted.", "max_length.jsonl is empty.", "There is no job 'max_length'.", "beta1 is 3."):
        assert english.sentence(kept) == kept
    assert "data.max_length" in chinese.sentence("Write it as in the job's YAML: data.max_length.")


def test_sentences_within_a_sentence() -> None:
    t = Translator("zh")
    no_turn = "No turn is the assistant's, so there is nothing to learn."
    assert t.sentence(f"Line 3 of a b.jsonl: {no_turn}") == f"a b.jsonl 第 3 行：{t.sentence(no_turn)}"
    several = t.sentence(f"Line 1 of a.jsonl: {no_turn} Rows with errors in all: 1,205.")
    assert several == f"a.jsonl 第 1 行：{t.sentence(no_turn)}共有 1,205 行有错误。"
    assert (
        t.sentence("Line 2 of a.json: there is a comma after the last row.") == "a.json 第 2 行：最后一行之后有逗号。"
    )
    assert t.sentence("Line 2 of a.json: Nobody knows this.") == "a.json 第 2 行：Nobody knows this."
    assert t.sentence("The worker crashed (SIGSEGV). Waiting to continue.").endswith("等待继续。")
