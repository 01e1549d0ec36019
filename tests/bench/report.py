"""The page of the benches: assets/bench/README.md, from the files that the benches wrote and nothing else.

python -m tests.bench.report
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.bench.record import FOLDER, cell, say

STATES = {True: "met", False: "**missed**", None: "not measured"}
HIDDEN = frozenset({"problem"})  # said below the table, in full
INTRO = """# Speed, memory and exactness, measured

Written by `python -m tests.bench.report` from the files beside it, which the benches wrote; `tests/bench/__init__.py`
names the command of each. Every bench checks equal gradients or outputs first, and lets the sides take turns on one
machine. A goal that was missed stays here."""


def write_page(folder: Path = FOLDER) -> Path:
    """Write the page; returns its path."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    path = folder / "README.md"
    path.write_text("\n\n".join([INTRO, *(_section(result) for result in results)]) + "\n", encoding="utf-8")
    return path


def _section(result: dict[str, Any]) -> str:
    goals = [
        [goal["text"], f"{'≥' if goal['at_least'] else '≤'} {goal['bound']:g}", cell(goal["measured"]),
         STATES[goal["is_met"]]]
        for goal in result["goals"]
    ]  # fmt: skip
    columns = [name for name in dict.fromkeys(key for row in result["rows"] for key in row) if name not in HIDDEN]
    rows = [[cell(row.get(name)) for name in columns] for row in result["rows"]]
    problems = [f"{_name(row)}: {row['problem']}" for row in result["rows"] if row.get("problem")]
    parts = [f"## {result['title']}", f"`python -m tests.bench.{result['bench']}`. {_machine(result)}"]
    parts += [_table(["goal", "bound", "measured", ""], goals)] if goals else []
    parts += [_table([name.replace("_", " ") for name in columns], rows)] if rows else []
    parts += ["\n".join(f"- {note}" for note in [*result["notes"], *problems])] if result["notes"] or problems else []
    return "\n\n".join(parts)


def _name(row: dict[str, Any]) -> str:
    return ", ".join(str(row[key]) for key in ("group", "side") if key in row)


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    where = (
        machine.get("accelerator") or f"{machine.get('processor', 'an unnamed processor')}, {machine['cores']} cores"
    )
    packages = ", ".join(f"{name} {found}" for name, found in result["versions"].items() if found != "not installed")
    return f"{where}; {result['date']}; {packages}."


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown; all columns but the first to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


if __name__ == "__main__":
    say(f"wrote {write_page()}")
