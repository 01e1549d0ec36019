"""What all commands share: opening the studio, and writing a table for people or one JSON object for programs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import StudioError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from studio.service import Studio

Workspace = Annotated[
    Path | None,
    typer.Option("--workspace", help="Folder of all data; else LORA_STUDIO_HOME, else the system's place for it."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON object, for programs.")]
FAILED = 1  # what was asked for was told, and it is bad: a check of `doctor` or of a plan
USER_ERROR = 2
PIPE_WIDTH = 240
MOST_IDS = 10  # named at once
DETACHED = 130  # what a shell reports after Ctrl-C


@contextmanager
def open_studio(workspace: Path | None) -> Iterator[Studio]:
    """The studio of a workspace, closed at the end; jobs go on."""
    from studio.service import Studio

    studio = Studio(workspace)
    try:
        yield studio
    finally:
        studio.close()


def console(*, stderr: bool = False) -> Console:
    """Where people read."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made.width = PIPE_WIDTH  # what goes into a file or a pipe is not broken into lines
    return made


def emit(as_json: bool, data: Any, shown: RenderableType) -> None:
    """Write `data` as JSON, or `shown` for people."""
    if as_json:
        typer.echo(json.dumps(plain(data), ensure_ascii=False))
    else:
        console().print(shown)


def say(text: str) -> None:
    """Tell the user something beside the result; on standard error, so that --json stays one object."""
    console(stderr=True).print(text, markup=False, soft_wrap=True)


def show_error(error: StudioError, *, as_json: bool) -> None:
    """Both sentences of an error, and the error as JSON where JSON was asked for."""
    from rich.text import Text

    out = console(stderr=True)
    out.print(Text.assemble(("Error: ", "bold red"), error.what), soft_wrap=True)
    if error.fix:
        out.print(Text.assemble(("Fix: ", "bold green"), error.fix), soft_wrap=True)
    if as_json:
        show_json_error(error.what, error.fix)


def show_json_error(what: str, fix: str) -> None:
    """An error for programs, on standard output in place of the result."""
    typer.echo(json.dumps({"error": {"what": what, "fix": fix}}, ensure_ascii=False))


def plain(value: Any) -> Any:
    """`value` as what JSON can say: dataclasses as objects, NaN and infinity as null, paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(entry) for entry in value]
    return value


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str = "") -> RenderableType:
    """A table of texts; `empty` says what to do when there are no rows."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*("-" if cell is None else escape(str(cell)) for cell in row))
    return made if made.row_count or not empty else escape(empty)


def facts(pairs: Mapping[str, Any]) -> RenderableType:
    """One fact a line, as name and value; seconds since 1970 are told as a date."""
    known = ((name, value) for name, value in pairs.items() if value not in (None, ""))
    return table(("", ""), [(name, _date(value) if name.endswith("_at") else value) for name, value in known])


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


def find(items: Sequence[Any], text: str, noun: str, *, is_lost: bool = False) -> Any:
    """The item with this id, or the newest with this name, which is told where there are several.

    Raises StudioError with the closest name where there is none, and for a name of several where what is meant would
    be lost (`is_lost`).
    """
    from difflib import get_close_matches

    for item in items:
        if item.id == text:
            return item
    named = [item for item in items if item.name == text]  # newest first
    if len(named) > 1:
        ids = ", ".join(item.id for item in named[:MOST_IDS]) + (", ..." if len(named) > MOST_IDS else "")
        if is_lost:
            raise StudioError(f"{len(named)} {noun}s are called {text!r}.", f"Give the id of one, newest first: {ids}.")
        say(f"{len(named)} {noun}s are called {text!r}; this is the newest, {named[0].id}. All, newest first: {ids}")
    if named:
        return named[0]
    near = get_close_matches(text, [item.name for item in items], n=1)
    plural = f"{noun}s"
    listing = f"See `lora-studio {plural} list`."
    hint = f"Did you mean {near[0]!r}?" if near else f"{listing} It is empty so far." if not items else listing
    raise StudioError(f"There is no {noun} {text!r}.", hint)


def find_model(studio: Studio, text: str, *, is_lost: bool = False) -> Any:
    """A model by id or name; `starter` is the starter model."""
    from studio.starter import NAME

    return find(studio.models(), NAME if text == "starter" else text, "model", is_lost=is_lost)


def size(bytes_: int) -> str:
    """A size for people: 269.1 MB."""
    amount, units = float(bytes_), ("B", "kB", "MB", "GB", "TB")
    for unit in units[:-1]:
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} {units[-1]}"


def duration(seconds: float | None) -> str | None:
    """A time span for people: 1 h 02 min."""
    if seconds is None:
        return None
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {left:02d} s" if minutes else f"{left} s"
