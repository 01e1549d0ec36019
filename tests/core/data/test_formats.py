"""Every format in every type of file is detected and becomes the right conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.data.dataset import inspect_dataset, load_dataset
from core.data.detection import detect
from core.data.formats import formats
from core.data.mapping import mapped, usual_names
from core.data.readers import READERS
from core.errors import DatasetError
from tests.core.data.format_samples import CASES, FOLDER, SAMPLES, WRITERS, dumped, plain, said, table, write_table

Turns = list[tuple[str, str]]
OTHER_WRITERS = {
    ".data.json": lambda path, rows: path.write_text(dumped({"v": [1], "data": rows, "by": {}}), encoding="utf-8"),
    ".semicolon.csv": lambda path, rows: write_table(path, rows, ";"),
}
FIRST_LINES = {".jsonl": 1, ".data.json": 1, ".parquet": 1, ".txt": 1}


@pytest.mark.parametrize(("name", "kind"), [*CASES, *((name, kind) for name in SAMPLES for kind in OTHER_WRITERS)])
def test_every_format_in_every_type_of_file(tmp_path: Path, name: str, kind: str) -> None:
    rows, expected = SAMPLES[name]
    path = tmp_path / f"file{kind}"
    {**WRITERS, **OTHER_WRITERS}[kind](path, rows)
    for file in (path, FOLDER / f"{name}{kind}"):  # written now, and as it lies in assets/formats
        if kind in OTHER_WRITERS and file is not path:
            continue
        dataset = load_dataset(file)
        assert (dataset.format, dataset.share, dataset.problems, len(dataset)) == (name, 1.0, (), len(rows))
        assert list(map(plain, dataset.records)) == expected
        if kind != ".json":
            first = 1 if kind == ".data.json" else FIRST_LINES.get(kind, 2)
            step = 0 if kind == ".data.json" else 1
            assert [record.row for record in dataset.records] == [first + step * n for n in range(len(rows))]


def test_the_table_holds_every_format_and_type_of_file_and_is_the_one_in_assets() -> None:
    assert set(SAMPLES) == set(formats.names())
    assert set(WRITERS) == set(READERS)
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == table()
    assert {file.name for file in FOLDER.iterdir()} == {f"{name}{kind}" for name, kind in CASES} | {"README.md"}


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"text": "whole", "messages": []}, "messages"),
        ({"text": "a", "label": "b", "id": 1}, "text_label"),
        ({"prompt": "a", "response": "b"}, "prompt_completion"),
        ({"instruction": "a", "input": "b", "output": "c", "text": "d"}, "alpaca"),
        ({"id": "1", "conversations": [], "system": ""}, "sharegpt"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "messages": []}, "preference"),
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


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("问题,答案", "question_answer"),
        ("问题,回答", "question_answer"),
        ("指令,输出", "alpaca"),
        ("指令,回答", "alpaca"),
        ("输入,输出", "prompt_completion"),
        ("提示词,回复", "prompt_completion"),
        ("文本,标签", "text_label"),
        ("原文,译文", "source_target"),
        ("instruction,response", "alpaca"),
        ("question,response", "question_answer"),
        ("input,output", "prompt_completion"),
        ("prompt,answer", "prompt_completion"),
    ],
)
def test_usual_names_of_columns_are_known(tmp_path: Path, header: str, name: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"{header}\nask,say\n", encoding="utf-8")
    dataset = load_dataset(path)
    assert dataset.format == name and "also" not in dataset.rule
    assert [turn.content for turn in dataset.records[0].messages] == ["ask", "say"]


def test_a_formats_own_names_come_before_synonyms() -> None:
    assert detect([{"instruction": "be short", "question": "q", "answer": "a"}]).format == "question_answer"
    assert "also" not in detect([{"instruction": "i", "input": "x", "output": "o"}]).rule
    assert usual_names({"答案": 1, "回答": 2, "answer": 3}) == {"答案": 1, "回答": 2, "answer": 3}
    assert mapped({"问题": "q", "标题": "t"}, {"question": "标题"})["question"] == "t"


def turns_of(path: Path, row: dict[str, Any]) -> Turns:
    path = path / "x.jsonl"
    path.write_text(json.dumps(row))
    return [said(turn) for turn in load_dataset(path).records[0].messages]


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


def pair_of(folder: Path, row: dict[str, Any]) -> tuple[Turns, Turns]:
    path = folder / "pair.jsonl"
    path.write_text(json.dumps(row))
    dataset = load_dataset(path)
    assert dataset.format == "preference"
    record = dataset.records[0]
    return [said(turn) for turn in record.messages], [said(turn) for turn in record.rejected]


def test_preference_pairs_in_the_forms_that_are_about(tmp_path: Path) -> None:
    asked, good, bad = (
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "g"},
        {"role": "assistant", "content": "b"},
    )
    expected = [("user", "q"), ("assistant", "g")], [("user", "q"), ("assistant", "b")]
    for row in (
        {"prompt": "q", "chosen": "g", "rejected": "b"},
        {"question": "q", "chosen": "g", "rejected": "b"},
        {"prompt": "q", "chosen": [asked, good], "rejected": [asked, bad]},  # UltraFeedback, binarised
        {"prompt": [asked], "chosen": [good], "rejected": [bad]},  # TRL's conversational form
        {"chosen": [asked, good], "rejected": [asked, bad]},
        {"messages": [asked], "chosen": good, "rejected": bad},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "g"},
         "rejected": {"from": "gpt", "value": "b"}},  # LLaMA-Factory
        {"chosen": "\n\nHuman: q\n\nAssistant: g", "rejected": "\n\nHuman: q\n\nAssistant: b"},  # hh-rlhf
        {"prompt": json.dumps([asked]), "chosen": json.dumps([good]), "rejected": json.dumps([bad])},
    ):  # fmt: skip
        assert pair_of(tmp_path, row) == expected, row
    with_system = {"system": "S", "prompt": "q", "chosen": "g", "rejected": "b"}
    assert pair_of(tmp_path, with_system)[1] == [("system", "S"), *expected[1]]


def test_tool_calls_in_the_forms_that_are_about(tmp_path: Path) -> None:
    tool = {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}
    arguments = {"city": "Oslo"}
    calls = [
        {"tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": json.dumps(arguments)}}]},
        {"tool_calls": [{"function": {"name": "weather", "arguments": arguments}}]},
        {"function_call": {"name": "weather", "arguments": json.dumps(arguments)}},
    ]
    expected = [("user", "q"), ("assistant", 'weather({"city": "Oslo"})'), ("tool", "-3"), ("assistant", "Cold.")]
    for call in calls:
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, **call},
                 {"role": "tool", "content": "-3"}, {"role": "assistant", "content": "Cold."}]  # fmt: skip
        assert turns_of(tmp_path, {"messages": turns, "tools": [tool]}) == expected
    shared = [("human", "q"), ("function_call", json.dumps({"name": "weather", "arguments": arguments})),
              ("observation", "-3"), ("gpt", "Cold.")]  # fmt: skip
    row = {"conversations": [{"from": who, "value": what} for who, what in shared], "tools": json.dumps([tool])}
    assert turns_of(tmp_path, row) == expected
    record = load_dataset(tmp_path / "x.jsonl").records[0]
    assert json.loads(record.tools) == [{"type": "function", "function": tool}]


def test_lists_of_turns_and_other_shapes(tmp_path: Path) -> None:
    two = [("user", "a"), ("assistant", "b")]
    for line in ('["a", "b"]', '{"dialog": ["a", "b"]}', '{"conversation": ["a", "b"]}', '{"utterances": ["a", "b"]}',
                 '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
                 '[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]'):  # fmt: skip
        path = tmp_path / "x.jsonl"
        path.write_text(line + "\n")
        assert [said(turn) for turn in load_dataset(path).records[0].messages] == two, line
    path = tmp_path / "x.json"
    path.write_text('[["a", "b"], ["c", "d"]]')
    assert load_dataset(path).format == "turns" and len(load_dataset(path)) == 2
    for answers in ({"text": ["b", "c"], "answer_start": [1, 2]}, [{"text": "b"}], ["b", "c"], "b"):
        assert turns_of(tmp_path, {"question": "a", "answers": answers}) == two


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
    "unknown role": (chat_row(("judge", "x"), A), "wrong_type"),
    "a tool that nobody called": (chat_row(U, ("tool", "x"), A), "role_order"),
    "a pair without a prompt": ({"chosen": "a", "rejected": "b"}, "missing_field"),
    "a pair of the same": ({"prompt": "p", "chosen": "a", "rejected": "a"}, "bad_pair"),
    "a pair with an empty side": ({"prompt": "p", "chosen": "a", "rejected": " "}, "empty_answer"),
    "a pair of two prompts": (
        {"chosen": chat_row(U, A)["messages"], "rejected": chat_row(("user", "other"), ("assistant", "b"))["messages"]},
        "bad_pair",
    ),
    "a pair that ends with a question": (
        {"chosen": chat_row(U, A, U)["messages"], "rejected": chat_row(U, A)["messages"]},
        "no_assistant",
    ),
    "a dialogue of numbers": ({"turns": [1, 2]}, "wrong_type"),
    "a dialogue of one text": ({"turns": ["hello"]}, "no_assistant"),
    "a tool call without a name": (
        {"messages": [*chat_row(U)["messages"], {"role": "assistant", "tool_calls": [{"function": {}}]}]},
        "wrong_type",
    ),
    "a tool call with broken arguments": (
        {
            "messages": [
                *chat_row(U)["messages"],
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]},
            ]
        },
        "bad_json",
    ),
    "tools that are a text": ({**chat_row(U, A), "tools": "weather"}, "wrong_type"),
    "no right answer": ({"question": "q", "answers": {"text": [], "answer_start": []}}, "empty_answer"),
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
