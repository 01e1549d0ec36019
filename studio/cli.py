"""The command line: every command but `serve`, which needs the page and so is added by `ui.main`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from core.errors import StudioError
from studio.commands import answers, datasets, jobs, library, machine, methods, queue, training, weights
from studio.commands.terminal import FAILED, USER_ERROR, show_error, show_json_error

_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # click's UsageError, wherever this version of typer has it

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
app.command()(methods.methods)
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
    """Run one command and exit: with 0 when all went well, 2 and two sentences for an error a user can meet, a wrong
    command line among them. With --json the error is a JSON object on standard output, too. Never a traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    try:
        code = app(arguments, standalone_mode=False)
    except _USAGE_ERROR as error:
        error.show()
        if as_json:
            show_json_error(error.format_message(), "Add --help to see what the command takes.")
        raise SystemExit(error.exit_code) from None
    except typer.Abort:
        raise SystemExit(FAILED) from None
    except StudioError as error:
        show_error(error, as_json=as_json)
        raise SystemExit(USER_ERROR) from None
    raise SystemExit(code or 0)
