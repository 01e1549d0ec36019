"""What a bench found: goals with their bounds, rows, versions and hardware, as a table and as a JSON file."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "assets" / "bench"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "unsloth", "liger-kernel", "bitsandbytes", "triton")


@dataclass(frozen=True)
class Goal:
    """One bound of the project, and what was measured; None where it was not, for the reason in `note`."""

    text: str
    bound: float
    measured: float | None
    at_least: bool = True  # False: at most
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the bound holds; None when nothing was measured."""
        if self.measured is None:
            return None
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


@dataclass
class Result:
    """All that one bench has to say."""

    bench: str
    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    versions: dict[str, str] = field(default_factory=lambda: versions())
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M", time.gmtime()))

    def publish(self, folder: Path = FOLDER) -> Path:
        """Print the tables and write the file; returns its path."""
        show(self.title, self.rows)
        show("Goals", [_goal_row(goal) for goal in self.goals])
        for note in self.notes:
            say(f"- {note}")
        return self.save(folder)

    def save(self, folder: Path = FOLDER) -> Path:
        """Write `<bench>.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.bench}.json"
        values = asdict(self) | {"goals": [asdict(goal) | {"is_met": goal.is_met} for goal in self.goals]}
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def ratio(above: float | None, below: float | None) -> float | None:
    """above / below, None when one of them is missing."""
    return above / below if above is not None and below else None


def median(values: Sequence[float]) -> float:
    """The middle value; of two, the upper."""
    return sorted(values)[len(values) // 2]


def versions() -> dict[str, str]:
    """What is installed of us and the rivals, by package."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Processor, cores and memory; the GPU is added by the benches that use one."""
    facts: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()}
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        lines = cpu.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        facts["processor"] = names[0] if names else platform.processor()
        facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
        facts["load"] = round(os.getloadavg()[0], 1)  # of others too: what the figures had to live with
    return facts


def say(text: str) -> None:
    """A line for whoever watches."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table: with rich where it is installed, else as plain columns."""
    if not rows:
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[cell(row.get(column)) for column in columns] for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        for line in [columns, *cells]:
            say("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))
        return
    table = Table(*columns, title=title)
    for line in cells:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def cell(value: Any) -> str:
    """A value as a reader wants it: three or four digits, yes and no."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _goal_row(goal: Goal) -> dict[str, Any]:
    bound = f"{'>=' if goal.at_least else '<='} {goal.bound:g}"
    state = {True: "met", False: "missed", None: "not measured"}[goal.is_met]
    return {"goal": goal.text, "bound": bound, "measured": goal.measured, "": state, "note": goal.note}
