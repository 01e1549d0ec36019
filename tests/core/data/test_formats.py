"""Every format in every type of file is detected and becomes the right conversation."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from core.data.dataset import inspect_dataset, load_dataset
from core.data.detection import detect
from core.data.formats import formats
from core.errors import DatasetError

Rows = Sequence[dict[str, Any]]
Turns = list[tuple[str, str]]

QUOTED = 'He said "no, never", and left; 100 % sure.'
SAMPLES: dict[str, tuple[Rows, list[Turns | str]]] = {
    "messages": (
        [
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": QUOTED}]},
            {
                "messages": [
                    {"role": r, "content": c} for r, c in [("system", "S"), ("user", "你好"), ("assistant", "B")]
                ]
            },
        ],
        [[("user", "Hi"), ("assistant", QUOTED)], [("system", "S"), ("user", "你好"), ("assistant", "B")]],
    ),
    "sharegpt": (
        [
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": QUOTED}]},
            {"conversations": [{"from": f, "value": v} for f, v in [("system", "S"), ("human", "C"), ("gpt", "D")]]},
        ],
        [[("user", "Hi"), ("assistant", QUOTED)], [("system", "S"), ("user", "C"), ("assistant", "D")]],
    ),
    "alpaca": (
        [
            {"instruction": "Translate.", "input": "你好", "output": QUOTED},
            {"instruction": "Greet me.", "input": "", "output": "Hello"},
        ],
        [[("user", "Translate.\n\n你好"), ("assistant", QUOTED)], [("user", "Greet me."), ("assistant", "Hello")]],
    ),
    "prompt_completion": (
        [{"prompt": "Once upon", "completion": " a time"}, {"prompt": "Two", "completion": QUOTED}],
        [[("user", "Once upon"), ("assistant", " a time")], [("user", "Two"), ("assistant", QUOTED)]],
    ),
    "question_answer": (
        [
            {"context": "Tea is hot.", "question": "Is it?", "answer": "Yes"},
            {"context": "", "question": "Who?", "answer": QUOTED},
        ],
        [[("user", "Tea is hot.\n\nIs it?"), ("assistant", "Yes")], [("user", "Who?"), ("assistant", QUOTED)]],
    ),
    "source_target": (
        [{"source": "Good day", "target": "Bonjour"}, {"source": QUOTED, "target": "Non"}],
        [[("user", "Good day"), ("assistant", "Bonjour")], [("user", QUOTED), ("assistant", "Non")]],
    ),
    "text_label": (
        [{"text": QUOTED, "label": "negative"}, {"text": "好", "label": "positive"}],
        [[("user", QUOTED), ("assistant", "negative")], [("user", "好"), ("assistant", "positive")]],
    ),
    "text": ([{"text": QUOTED}, {"text": "第二行"}], [QUOTED, "第二行"]),
}


def cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def write_table(path: Path, rows: Rows, delimiter: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows([{name: cell(value) for name, value in row.items()} for row in rows])


def dumped(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False)


WRITERS: dict[str, Callable[[Path, Rows], Any]] = {
    ".jsonl": lambda path, rows: path.write_text("\n".join(map(dumped, rows)), encoding="utf-8"),
    ".json": lambda path, rows: path.write_text(json.dumps(rows, indent=2), encoding="utf-8"),
    ".data.json": lambda path, rows: path.write_text(dumped({"v": [1], "data": rows, "by": {}}), encoding="utf-8"),
    ".csv": lambda path, rows: write_table(path, rows, ","),
    ".semicolon.csv": lambda path, rows: write_table(path, rows, ";"),
    ".tsv": lambda path, rows: write_table(path, rows, "\t"),
    ".parquet": lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path),
    ".txt": lambda path, rows: path.write_text("\n".join(row["text"] for row in rows), encoding="utf-8"),
}  # fmt: skip
FIRST_ROWS = {".jsonl": (1, 2), ".data.json": (1, 1), ".parquet": (1, 2), ".txt": (1, 2)}
CASES = [(name, kind) for name in SAMPLES for kind in WRITERS if kind != ".txt" or name == "text"]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_format_in_every_type_of_file(tmp_path: Path, name: str, kind: str) -> None:
    rows, expected = SAMPLES[name]
    path = tmp_path / f"file{kind}"
    WRITERS[kind](path, rows)
    dataset = load_dataset(path)
    assert (dataset.format, dataset.share, dataset.problems, len(dataset)) == (name, 1.0, (), len(rows))
    read = [record.text or [(turn.role, turn.content) for turn in record.messages] for record in dataset.records]
    assert read == expected
    if kind != ".json":
        assert tuple(record.row for record in dataset.records) == FIRST_ROWS.get(kind, (2, 3))


def test_the_table_holds_every_format() -> None:
    assert set(SAMPLES) == set(formats.names())


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"text": "whole", "messages": []}, "messages"),
        ({"text": "a", "label": "b", "id": 1}, "text_label"),
        ({"prompt": "a", "response": "b"}, "prompt_completion"),
        ({"instruction": "a", "input": "b", "output": "c", "text": "d"}, "alpaca"),
        ({"id": "1", "conversations": [], "system": ""}, "sharegpt"),
    ],
)
def test_detection_prefers_what_needs_more(row: dict[str, Any], name: str) -> None:
    found = detect([row])
    assert (found.format, found.share) == (name, 1.0)
    assert all(column in found.rule for column in [names[0] for names in formats.get(name).columns])


def test_detection_tells_the_share_and_what_else_would_fit(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    good, other = '{"question": "q", "answer": "a", "source": "s", "target": "t"}\n', '{"other": 1}\n'
    path.write_text(good * 3 + other)
    dataset = inspect_dataset(path)
    assert (dataset.format, dataset.share) == ("question_answer", 0.75)
    assert "also fit source_target" in dataset.rule
    assert [(problem.row, problem.kind) for problem in dataset.problems if problem.level == "error"] == [
        (4, "missing_field")
    ]


def test_the_share_counts_every_row_and_not_only_those_that_were_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text('{"text": "a", "label": "b"}\n' * 1500 + '{"x": 1}\n' * 500)
    assert inspect_dataset(path).share == 0.75


@pytest.mark.parametrize("rows", ['{"foo": 1, "Bar ": 2}\n', '{"foo": "x"}\n' * 9 + '{"text": "x"}\n'])
def test_unknown_columns_list_what_was_found_and_what_is_needed(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(rows)
    with pytest.raises(DatasetError) as caught:
        inspect_dataset(path)
    assert "'foo'" in caught.value.what
    assert all(name in caught.value.fix and formats.get(name).needs in caught.value.fix for name in formats.names())


def test_the_format_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text,label\nfine,good\n")
    dataset = load_dataset(path, format="text")
    assert (dataset.format, dataset.records[0].text) == ("text", "fine")
    assert "chosen by you" in dataset.rule
    with pytest.raises(DatasetError, match=r"no data format 'alpacca'.*Did you mean 'alpaca'"):
        load_dataset(path, format="alpacca")
    with pytest.raises(DatasetError, match=r"no row in the format alpaca.*'text', 'label'"):
        load_dataset(path, format="alpaca")


def test_column_names_may_differ_in_case_and_spaces(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("Text , LABEL\nfine,good\n")
    assert [turn.content for turn in load_dataset(path).records[0].messages] == ["fine", "good"]


def turns_of(path: Path, row: dict[str, Any]) -> Turns:
    path = path / "x.jsonl"
    path.write_text(json.dumps(row))
    return [(turn.role, turn.content) for turn in load_dataset(path).records[0].messages]


def test_what_formats_may_hold_besides(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = [
        {"role": "developer", "content": "S"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "c"},
    ]
    assert turns_of(tmp_path, {"messages": chat}) == [("system", "S"), ("user", "ab"), ("assistant", "c")]
    assert turns_of(tmp_path, {"conversations": chat[1:], "system": "T"})[0] == ("system", "T")
    row = {"instruction": "now", "output": "o", "system": "S", "history": [["q", "a"], ["r", "b"]]}
    expected = [("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"), ("user", "now")]
    assert turns_of(tmp_path, row)[:-1] == expected
    assert turns_of(tmp_path, {"text": "t", "label": 3}) == [("user", "t"), ("assistant", "3")]


def chat_row(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


U, A = ("user", "question"), ("assistant", "answer")
BAD_ROWS = {
    "answer of spaces": (chat_row(U, ("assistant", "  ")), "empty_answer"),
    "empty answer": ({"prompt": "p", "completion": ""}, "empty_answer"),
    "answer is null": ({"prompt": "p", "completion": None}, "empty_answer"),
    "two users": (chat_row(U, U, A), "role_order"),
    "assistant first": (chat_row(A, U, A), "role_order"),
    "system later": (chat_row(U, ("system", "s"), A), "role_order"),
    "two assistants": (chat_row(U, A, A), "role_order"),
    "only users": (chat_row(U), "no_assistant"),
    "no turns": (chat_row(), "no_assistant"),
    "empty question": (chat_row(("user", ""), A), "missing_field"),
    "no content": ({"messages": [{"role": "user"}]}, "missing_field"),
    "unknown role": (chat_row(("tool", "x"), A), "wrong_type"),
    "role is a number": (chat_row((1, "x"), A), "wrong_type"),
    "content is a number": (chat_row(("user", 1), A), "wrong_type"),
    "an image": (chat_row(("user", [{"type": "image_url"}]), A), "wrong_type"),
    "a turn is a text": ({"messages": ["hello"]}, "wrong_type"),
    "messages is an object": ({"messages": {"role": "user"}}, "wrong_type"),
    "messages is null": ({"messages": None}, "missing_field"),
    "messages is broken JSON": ({"messages": '[{"role": '}, "bad_json"),
    "label is true": ({"text": "t", "label": True}, "wrong_type"),
    "answer is a list": ({"question": "q", "answer": ["a"]}, "wrong_type"),
    "answer is a fraction": ({"question": "q", "answer": 1.5}, "wrong_type"),
    "history is not pairs": ({"instruction": "i", "output": "o", "history": [["q"]]}, "wrong_type"),
    "empty text": ({"text": " "}, "missing_field"),
    "empty source": ({"source": "", "target": "t"}, "missing_field"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named(tmp_path: Path, case: str) -> None:
    row, kind = BAD_ROWS[case]
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(row)}\n")
    dataset = inspect_dataset(path)
    assert [(problem.row, problem.kind, problem.level) for problem in dataset.problems] == [(1, kind, "error")]
    assert dataset.records == () and dataset.problems[0].detail.endswith(".")
    with pytest.raises(DatasetError, match=r"Line 1 of bad\.jsonl"):
        load_dataset(path, skip_bad_rows=True)
