"""A small sample of every data format in every type of file that can hold it: rows, and what has to come of them.

`python -m tests.core.data.format_samples` writes the files of `assets/formats` and the table in its README.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from openpyxl import Workbook

from core.data.dataset import load_dataset
from core.data.formats import formats
from core.data.records import Message, Record, ToolCall

FOLDER = Path(__file__).resolve().parents[3] / "assets" / "formats"
Rows = Sequence[dict[str, Any]]
Turns = list[tuple[str, str]]

QUOTED = 'He said "no, never", and left; 100 % sure.'
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}


def chat(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


SAMPLES: dict[str, tuple[Rows, list[Any]]] = {
    "messages": (
        [
            {"messages": chat(("user", "Hi"), ("assistant", QUOTED)), "tools": None},
            {"messages": chat(("system", "S"), ("user", "你好"), ("assistant", "B")), "tools": None},
            {
                "messages": [
                    *chat(("user", "Is it cold in Oslo?")),
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "-3"},
                    *chat(("assistant", "Yes: -3 degrees.")),
                ],
                "tools": [WEATHER],
            },
        ],
        [
            [("user", "Hi"), ("assistant", QUOTED)],
            [("system", "S"), ("user", "你好"), ("assistant", "B")],
            [("user", "Is it cold in Oslo?"), ("assistant", 'weather({"city": "Oslo"})'), ("tool", "-3"),
             ("assistant", "Yes: -3 degrees.")],
        ],
    ),
    "sharegpt": (
        [
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": QUOTED}]},
            {"conversations": [{"from": f, "value": v} for f, v in [("system", "S"), ("human", "C"), ("gpt", "D")]]},
        ],
        [[("user", "Hi"), ("assistant", QUOTED)], [("system", "S"), ("user", "C"), ("assistant", "D")]],
    ),
    "turns": (
        [{"turns": ["Hi", QUOTED]}, {"turns": ["你好", "B", "C", "D"]}],
        [
            [("user", "Hi"), ("assistant", QUOTED)],
            [("user", "你好"), ("assistant", "B"), ("user", "C"), ("assistant", "D")],
        ],
    ),
    "alpaca": (
        [
            {"instruction": "Translate.", "input": "你好", "output": QUOTED, "history": [["Hi", "Hello"]]},
            {"instruction": "Greet me.", "input": "", "output": "Hello", "history": []},
        ],
        [
            [("user", "Hi"), ("assistant", "Hello"), ("user", "Translate.\n\n你好"), ("assistant", QUOTED)],
            [("user", "Greet me."), ("assistant", "Hello")],
        ],
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
    "preference": (
        [
            {"prompt": "Hi", "chosen": QUOTED, "rejected": "No."},
            {"prompt": "你好", "chosen": "B", "rejected": "D"},
        ],
        [
            ([("user", "Hi"), ("assistant", QUOTED)], [("user", "Hi"), ("assistant", "No.")]),
            ([("user", "你好"), ("assistant", "B")], [("user", "你好"), ("assistant", "D")]),
        ],
    ),
    "text": ([{"text": QUOTED}, {"text": "第二行"}], [QUOTED, "第二行"]),
}  # fmt: skip


def said(message: Message) -> tuple[str, str]:
    """A turn as (role, words); tool calls are written out."""
    return message.role, message.content + "".join(map(call_text, message.tool_calls))


def call_text(call: ToolCall) -> str:
    return f"{call.name}({call.arguments})"


def plain(record: Record) -> Any:
    """A record in the form in which SAMPLES expects it."""
    chosen = [said(turn) for turn in record.messages]
    return record.text or ((chosen, [said(turn) for turn in record.rejected]) if record.rejected else chosen)


# -- writing them


def cell(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def write_table(path: Path, rows: Rows, delimiter: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows([{name: cell(value) for name, value in row.items()} for row in rows])


def write_workbook(path: Path, rows: Rows) -> None:
    book = Workbook()
    book.active.append(list(rows[0]))
    for row in rows:
        book.active.append([cell(value) or None for value in row.values()])
    book.save(path)


def dumped(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False)


WRITERS: dict[str, Callable[[Path, Rows], Any]] = {
    ".jsonl": lambda path, rows: path.write_text("\n".join(map(dumped, rows)) + "\n", encoding="utf-8"),
    ".json": lambda path, rows: path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8"),
    ".csv": lambda path, rows: write_table(path, rows, ","),
    ".tsv": lambda path, rows: write_table(path, rows, "\t"),
    ".parquet": lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path),
    ".xlsx": write_workbook,
    ".txt": lambda path, rows: path.write_text("\n".join(row["text"] for row in rows) + "\n", encoding="utf-8"),
}
CASES = [(name, kind) for name in SAMPLES for kind in WRITERS if kind != ".txt" or name == "text"]

HEAD = """# One sample of every format in every type of file

Made and checked by `tests/core/data/format_samples.py`; each cell is what reading the file here gives: the rows, and
the share of them that matched the format's rule. Own work, CC0.

"""


def table() -> str:
    """The README of the samples, from reading them."""
    lines = [f"| format | a row has | {' | '.join(WRITERS)} |", f"|---|---|{'---|' * len(WRITERS)}"]
    for name in SAMPLES:
        cells = [_cell(name, kind) if (name, kind) in CASES else "" for kind in WRITERS]
        lines.append(f"| {name} | {formats.get(name).needs} | {' | '.join(cells)} |")
    return HEAD + "\n".join(lines) + "\n"


def _cell(name: str, kind: str) -> str:
    file = f"{name}{kind}"
    dataset = load_dataset(FOLDER / file)
    return f"[{len(dataset)} rows, {dataset.share:.0%}]({file})"


def main() -> None:
    """Write every file, then the table."""
    FOLDER.mkdir(exist_ok=True)
    for name, kind in CASES:
        WRITERS[kind](FOLDER / f"{name}{kind}", SAMPLES[name][0])
    (FOLDER / "README.md").write_text(table(), encoding="utf-8")
    sys.stdout.write(table())


if __name__ == "__main__":
    main()
