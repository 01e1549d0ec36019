"""The sample datasets in assets/datasets are complete, parseable, and free of repeated or nearly repeated rows."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import NamedTuple

import pytest

DATASETS = Path(__file__).resolve().parent.parent / "assets" / "datasets"
NEAR_DUPLICATE = 0.6

PRODUCTS = {"router", "phone", "laptop", "headphones", "smartwatch", "television", "printer", "tablet"}
URGENCIES = {"low", "medium", "high"}
LANGUAGES = {"en", "fr", "de", "es", "it"}
REVIEW_FILES = ["sentiment.csv", "sentiment_wry.csv"]
TICKET_FILES = ["support_tickets.jsonl", "support_tickets_heldout.jsonl"]


class Row(NamedTuple):
    """One example: the text the model is given, and every text of the row."""

    source: str
    fields: tuple[str, ...]


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


def read_text(name: str) -> str:
    """The whole file as strict UTF-8."""
    return (DATASETS / name).read_text(encoding="utf-8")


def text_field(record: dict[str, object], key: str) -> str:
    """A text of a parsed JSON object that must be there and must not be blank."""
    value = record[key]
    assert isinstance(value, str), f"{key!r} is not a string: {value!r}"
    assert value.strip(), f"{key!r} is blank"
    return value


def as_object(value: object) -> dict[str, object]:
    """A parsed JSON value that must be an object."""
    assert isinstance(value, dict), f"not a JSON object: {value!r}"
    return value


def read_conversations(name: str) -> list[list[Message]]:
    """The conversations of a JSON-lines file of {"messages": [...]} rows."""
    conversations: list[list[Message]] = []
    for line in read_text(name).removesuffix("\n").split("\n"):
        turns = as_object(json.loads(line))["messages"]
        assert isinstance(turns, list), f"messages is not a list: {line}"
        records = [as_object(turn) for turn in turns]
        assert all(record.keys() == {"role", "content"} for record in records), line
        conversation = [Message(text_field(record, "role"), text_field(record, "content")) for record in records]
        spoken = [message.role for message in conversation if message.role != "system"]
        assert spoken, line
        assert len(spoken) % 2 == 0, f"the last turn is not the assistant's: {line}"
        assert spoken == ["user", "assistant"] * (len(spoken) // 2), f"turns do not alternate: {line}"
        assert all(message.role != "system" for message in conversation[1:]), f"a late system message: {line}"
        conversations.append(conversation)
    return conversations


def load_conversations(name: str) -> list[Row]:
    """Rows of a conversation file, each with its first user message as the source."""
    rows: list[Row] = []
    for conversation in read_conversations(name):
        first = next(message.content for message in conversation if message.role == "user")
        rows.append(Row(first, tuple(message.content for message in conversation)))
    return rows


def load_sentiment(name: str) -> list[Row]:
    """Rows of a CSV file with the header text,label."""
    with (DATASETS / name).open(encoding="utf-8", newline="") as stream:
        header, *records = csv.reader(stream, strict=True)
    assert header == ["text", "label"]
    assert all(len(record) == 2 and all(field.strip() for field in record) for record in records)
    assert len({label for _, label in records}) >= 2, "a single label cannot be learnt"
    return [Row(record[0], tuple(record)) for record in records]


def load_translation(name: str) -> list[Row]:
    """Rows of a tab-separated file with the header source, target."""
    header, *records = [line.split("\t") for line in read_text(name).removesuffix("\n").split("\n")]
    assert header == ["source", "target"]
    for record in records:
        assert len(record) == 2, record
        assert all(field.strip() for field in record), record
    return [Row(record[0], tuple(record)) for record in records]


def load_questions(name: str) -> list[Row]:
    """Rows of a JSON list of questions and answers, with an optional context."""
    records: object = json.loads(read_text(name))
    assert isinstance(records, list)
    rows: list[Row] = []
    for record in map(as_object, records):
        assert {"question", "answer"} <= record.keys() <= {"question", "answer", "context"}, record
        texts = {key: text_field(record, key) for key in sorted(record) if key != "context" or record[key] != ""}
        rows.append(Row(texts["question"], tuple(texts.values())))
    return rows


def load_preferences(name: str) -> list[Row]:
    """Rows of a JSON-lines file of prompts with a better and a worse answer."""
    records = [as_object(json.loads(line)) for line in read_text(name).removesuffix("\n").split("\n")]
    assert all(record.keys() == {"prompt", "chosen", "rejected"} for record in records)
    rows = [tuple(text_field(record, key) for key in ("prompt", "chosen", "rejected")) for record in records]
    assert all(chosen != rejected for _, chosen, rejected in rows)
    return [Row(row[0], row) for row in rows]


class Sample(NamedTuple):
    """What is expected of one file."""

    load: Callable[[str], list[Row]]
    least: int
    most: int | None = None
    characters: bool = False


SAMPLES = {
    "support_tickets.jsonl": Sample(load_conversations, 300),
    "support_tickets_heldout.jsonl": Sample(load_conversations, 60, most=60),
    "sentiment.csv": Sample(load_sentiment, 400),
    "sentiment_wry.csv": Sample(load_sentiment, 400),
    "dialogues_zh.jsonl": Sample(load_conversations, 150, characters=True),
    "translation_en_fr.tsv": Sample(load_translation, 200),
    "qa.json": Sample(load_questions, 150),
    "preferences.jsonl": Sample(load_preferences, 95),
}


def trigrams(text: str, *, characters: bool) -> frozenset[Hashable]:
    """The 3-grams of a text's words, or of its letters for Chinese; a shorter text is one gram."""
    words = re.findall(r"\w+", text.casefold())
    units = list("".join(words)) if characters else words
    return frozenset(tuple(units[start : start + 3]) for start in range(max(1, len(units) - 2)))


def near_duplicates(texts: list[str], *, characters: bool = False) -> list[tuple[float, str, str]]:
    """Pairs of texts whose 3-gram sets have a Jaccard similarity of NEAR_DUPLICATE or more."""
    found: list[tuple[float, str, str]] = []
    holders: defaultdict[Hashable, list[int]] = defaultdict(list)
    sizes: list[int] = []
    for index, text in enumerate(texts):
        grams = trigrams(text, characters=characters)
        shared = Counter(other for gram in grams for other in holders[gram])
        for other, common in shared.items():
            similarity = common / (len(grams) + sizes[other] - common)
            if similarity >= NEAR_DUPLICATE:
                found.append((similarity, texts[other], text))
        for gram in grams:
            holders[gram].append(index)
        sizes.append(len(grams))
    return found


def test_near_duplicates_are_recognised() -> None:
    """The comparison itself finds a changed word and passes unrelated texts."""
    base = "the printer on the second floor has run out of black ink again"
    near = "the printer on the second floor has run out of black ink today"
    other = "could you tell me when the shop opens on sunday"
    assert [pair[1:] for pair in near_duplicates([base, other, near])] == [(base, near)]
    assert near_duplicates(["今天天气怎么样啊", "明天股市会上涨吗"], characters=True) == []
    assert len(near_duplicates(["今天天气怎么样啊?", "今天天气怎么样啊!"], characters=True)) == 1


@pytest.mark.parametrize("name", SAMPLES)
def test_file_parses_and_has_enough_rows(name: str) -> None:
    """Every row has the expected fields, and there are as many rows as promised."""
    sample = SAMPLES[name]
    count = len(sample.load(name))
    assert count >= sample.least
    assert sample.most is None or count <= sample.most


@pytest.mark.parametrize("name", SAMPLES)
def test_no_exact_duplicates(name: str) -> None:
    """No row, and no source text, occurs twice."""
    rows = SAMPLES[name].load(name)
    assert [row for row, count in Counter(rows).items() if count > 1] == []
    assert [text for text, count in Counter(row.source for row in rows).items() if count > 1] == []


@pytest.mark.parametrize(
    "names",
    [TICKET_FILES, REVIEW_FILES, *([name] for name in SAMPLES if name not in (*TICKET_FILES, *REVIEW_FILES))],
    ids="+".join,
)
def test_no_near_duplicates(names: list[str]) -> None:
    """No two source texts are nearly the same; the held-out tickets are compared with the training ones."""
    texts = [row.source for name in names for row in SAMPLES[name].load(name)]
    assert near_duplicates(texts, characters=SAMPLES[names[0]].characters) == []


@pytest.mark.parametrize("name", TICKET_FILES)
def test_ticket_keys_and_values(name: str) -> None:
    """Every ticket is a JSON object with the four keys in order and values from the known sets."""
    for conversation in read_conversations(name):
        assert [message.role for message in conversation] == ["system", "user", "assistant"]
        assert conversation[0].content == "Turn the customer's message into a support ticket."
        answer = conversation[2].content
        ticket = as_object(json.loads(answer))
        assert list(ticket) == ["product", "problem", "urgency", "language"], answer
        assert json.dumps(ticket, ensure_ascii=False) == answer
        assert ticket["product"] in PRODUCTS, answer
        assert ticket["urgency"] in URGENCIES, answer
        assert ticket["language"] in LANGUAGES, answer
        problem = text_field(ticket, "problem")
        assert problem == problem.lower().strip(), answer
        assert 2 <= len(problem.split()) <= 6, answer
        assert 8 <= len(conversation[1].content.split()) <= 40, conversation[1].content


@pytest.mark.parametrize("name", TICKET_FILES)
@pytest.mark.parametrize("key", ["product", "urgency", "language"])
def test_ticket_values_all_occur_and_are_balanced(name: str, key: str) -> None:
    """Every value occurs, and products and urgencies about equally often."""
    tickets = [as_object(json.loads(conversation[-1].content)) for conversation in read_conversations(name)]
    counts = Counter(str(ticket[key]) for ticket in tickets)
    assert counts.keys() == {"product": PRODUCTS, "urgency": URGENCIES, "language": LANGUAGES}[key]
    if key == "language":
        assert 0.6 <= counts["en"] / len(tickets) <= 0.8
    else:
        assert max(counts.values()) <= 1.5 * min(counts.values())
