"""`lora-studio datasets`: what there is to train on, and what is in a file before it is added."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.data.problems import KINDS
from core.data.readers import ENCODINGS, UTF8
from core.data.recipe import Recipe
from core.errors import ConfigError
from studio.commands.following import follow
from studio.commands.terminal import AsJson, Workspace, emit, facts, find, open_studio, plain, say, size, table

if TYPE_CHECKING:
    from rich.console import RenderableType

datasets = typer.Typer(help="Datasets.", no_args_is_help=True)
_LONG = ("problems",)
_KINDS = "; ".join(f"{kind}: {', '.join(about.actions)}" for kind, about in KINDS.items())


@datasets.command("add")
def add_dataset(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Files (.jsonl, .json, .csv, .tsv, .txt, .parquet, .xlsx) for one dataset."),
    ],
    name: Annotated[str, typer.Option(help="What to call it.")] = "",
    format: Annotated[str | None, typer.Option(help="Its format, where the guess is wrong.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Where a column of the format is: prompt=data.question, completion=answers.0.text."),
    ] = None,
    on: Annotated[
        list[str] | None, typer.Option(help=f"What to do with rows that have a problem, as duplicate=skip. {_KINDS}.")
    ] = None,
    encoding: Annotated[str, typer.Option(help=f"Of text files: {', '.join(ENCODINGS)}.")] = UTF8,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out rows that are wrong.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only tell what is in it and what is wrong.")] = False,
    bad_rows: Annotated[
        Path | None, typer.Option(help="With --check: write the rows that have a problem to this .jsonl file.")
    ] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Add a dataset of one file or several; the first row that is wrong is named."""
    recipe = Recipe(format, _pairs(column, "--column"), _pairs(on, "--on"), encoding)
    recipe = recipe.skipping_errors() if skip_bad_rows else recipe
    with open_studio(workspace) as studio:
        if check:
            view = studio.dataset_shelf.inspect(paths, recipe, bad_rows)
        else:
            view = studio.dataset_shelf.add(paths, name, recipe)
    for problem in view.problems[:20]:
        where = f"row {problem.row}" + (f" of {problem.file}" if problem.file else "")
        say(f"{where}: {problem.level}: {problem.detail}")
    for kind, count in view.counts.items():
        say(f"{count:,} rows with the problem {kind}: {recipe.action(kind)}")
    emit(as_json, view, _facts(view))


@datasets.command("fetch")
def fetch_dataset(
    hub_id: Annotated[str, typer.Argument(help="A dataset of the Hugging Face hub: owner/name.")],
    subset: Annotated[str, typer.Option(help="Its subset (configuration), where it has several.")] = "",
    split: Annotated[str, typer.Option(help="Its split, or a part of it: train[:1000].")] = "train",
    name: Annotated[str, typer.Option(help="What to call it.")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is there.")] = True,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a dataset of the hub and add it; rows that are wrong are left out."""
    with open_studio(workspace) as studio:
        job = studio.fetch_dataset(hub_id, subset=subset, split=split, name=name)
        if not wait:
            say(f"Queued. Follow it: lora-studio jobs show {job.id} --wait")
            emit(as_json, job, facts({"job": job.id, "state": job.state}))
            return
        view = studio.dataset(str(follow(studio, job.id).result["dataset_id"]))
    emit(as_json, view, _facts(view))


@datasets.command("columns")
def show_columns(
    paths: Annotated[list[Path], typer.Argument(help="The files.")],
    encoding: Annotated[str, typer.Option(help=f"Of text files: {', '.join(ENCODINGS)}.")] = UTF8,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Show where values are in the rows of files, for `add --column`."""
    with open_studio(workspace) as studio:
        found = studio.dataset_shelf.columns(paths, Recipe(encoding=encoding).encoding)
    emit(as_json, {"columns": found}, table(("path", "first value"), found.items()))


@datasets.command("list")
def list_datasets(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """List the datasets, the newest first."""
    with open_studio(workspace) as studio:
        found = studio.datasets()
    rows = [(d.id, d.name, d.format, d.rows, d.bad_rows, size(d.size_bytes)) for d in found]
    empty = (
        "There are no datasets. Add one with `lora-studio datasets add FILE`, or all samples with `lora-studio setup`."
    )
    emit(as_json, {"datasets": found}, table(("id", "name", "format", "rows", "bad rows", "size"), rows, empty))


@datasets.command("show")
def show_dataset(
    dataset: Annotated[str, typer.Argument(help="Id or name.")],
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 3,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Show a dataset's facts and its first rows as conversations."""
    from rich.console import Group
    from rich.text import Text

    with open_studio(workspace) as studio:
        view = find(studio.datasets(), dataset, "dataset")
        preview = studio.preview(view.id, count=rows)
    lines = [Text(f"row {row.row}\n" + "\n".join(f"  {role}: {text}" for role, text in row.turns)) for row in preview]
    emit(as_json, plain(view) | {"preview": preview}, Group(_facts(view), "", *lines))


@datasets.command("delete")
def delete_dataset(
    dataset: Annotated[str, typer.Argument(help="Id or name.")], workspace: Workspace = None, as_json: AsJson = False
) -> None:
    """Delete a dataset that no unfinished job needs."""
    with open_studio(workspace) as studio:
        view = find(studio.datasets(), dataset, "dataset", is_lost=True)
        studio.delete_dataset(view.id)
    emit(as_json, {"deleted": view.id}, f"Deleted the dataset {view.name}.")


def _pairs(given: Sequence[str] | None, flag: str) -> dict[str, str]:
    """`name=value` options as a mapping."""
    pairs = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise ConfigError(f"{flag} {text!r} is not written as name=value.", f"Write, for example, {flag} a=b.")
        pairs[name.strip().lower()] = value.strip()
    return pairs


def _facts(view: object) -> RenderableType:
    """A view's short fields as lines."""
    return facts({name: value for name, value in plain(view).items() if name not in _LONG and value not in ({}, [])})
