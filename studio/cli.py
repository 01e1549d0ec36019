"""The command line: every command but `serve`, which needs the page and so is added by `ui.main`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from core.errors import StudioError
from studio.commands import answers, datasets, jobs, library, machine, queue, training, weights
from studio.commands.terminal import USER_ERROR, show_error

app = typer.Typer(
    name="lora-studio",
    help="Fine-tune language models with adapters. Without a command the studio opens in the browser.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(training.train)
app.add_typer(jobs.app, name="jobs")
app.add_typer(queue.app, name="queue")
app.add_typer(library.models, name="models")
app.add_typer(datasets.datasets, name="datasets")
app.add_typer(library.adapters, name="adapters")
app.command()(weights.merge)
app.command()(weights.export)
app.command()(answers.generate)
app.command()(answers.compare)
app.command()(machine.setup)
app.command()(machine.demo)
app.command()(machine.doctor)
app.command()(machine.stop)


@app.callback()
def settings(
    workspace: Annotated[Path | None, typer.Option("--workspace", help="Folder of all data, for any command.")] = None,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Settings for every command."""
    if show_version:
        from importlib.metadata import version

        typer.echo(version("lora-studio"))
        raise typer.Exit
    if workspace is not None:
        os.environ["LORA_STUDIO_HOME"] = str(workspace)


def run(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit; an error a user can meet becomes two sentences and exit code 2, never a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(arguments)
    except StudioError as error:
        show_error(error, as_json="--json" in arguments)
        raise SystemExit(USER_ERROR) from None
