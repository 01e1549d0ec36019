"""The reliability scenarios: what must hold, the figure that shows it, and what the tests measured.

`list.yaml` is the list. A test belongs to a scenario by `@pytest.mark.scenario(26)` and says what it measured with the
`figure` fixture. `pytest --figures` keeps that in `figures.json`; `python -m tests.scenarios` then writes the table.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

LIST, FIGURES = (Path(__file__).with_name(name) for name in ("list.yaml", "figures.json"))
TABLE = Path(__file__).parents[2] / "assets" / "reliability.md"

Figures = dict[int, dict[str, list[str]]]  # scenario -> test -> what it measured


@dataclass(frozen=True)
class Scenario:
    """One line of the list; `gap` says what of it no test here can show, and why."""

    number: int
    what: str
    how: str
    wanted: str
    gap: str = ""


@cache
def scenarios() -> tuple[Scenario, ...]:
    """All scenarios by number."""
    entries = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    return tuple(Scenario(number, **entry) for number, entry in entries.items())


def marked() -> set[int]:
    """The scenarios that some test is marked with."""
    tests = (path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("test_*.py"))
    marks = (match for text in tests for match in re.findall(r"mark\.scenario\(([\d, ]+)\)", text))
    return {int(number) for numbers in marks for number in numbers.split(",")}


def read_figures() -> Figures:
    """What the tests of each scenario measured when they last ran with `--figures`."""
    if not FIGURES.exists():
        return {}
    kept = json.loads(FIGURES.read_text(encoding="utf-8"))
    return {int(number): tests for number, tests in kept.items()}


def keep_figures(measured: Figures) -> None:
    """Replace what is kept of the tests in `measured`; the figures of all others stay."""
    kept = read_figures()
    for number, tests in measured.items():
        kept.setdefault(number, {}).update(tests)
    ordered = {str(number): dict(sorted(kept[number].items())) for number in sorted(kept)}
    FIGURES.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def table(figures: Figures) -> str:
    """The page of the docs: one line a scenario."""
    lines = [
        "# Reliability and security, scenario by scenario",
        "",
        "Written by `python -m tests.scenarios` from what the tests measured (`pytest --figures`); not by hand.",
        "",
        "| # | what happens | what must hold | measured | tests |",
        "|--:|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_line(scenario, figures.get(scenario.number, {})) for scenario in scenarios())]) + "\n"


def _line(scenario: Scenario, tests: dict[str, list[str]]) -> str:
    counted = Counter(text for texts in tests.values() for text in texts)
    measured = [text if times == 1 else f"{text} (x {times})" for text, times in counted.items()]
    if scenario.gap:
        measured.append(f"*Not shown:* {scenario.gap}")
    names = dict.fromkeys(name.partition("[")[0].removeprefix("tests/") for name in tests)
    cells = [f"**{scenario.what}**: {scenario.how}", scenario.wanted, "<br>".join(measured)]
    escaped = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
    return f"| {scenario.number} | {' | '.join(escaped)} | {'<br>'.join(f'`{name}`' for name in names)} |"
