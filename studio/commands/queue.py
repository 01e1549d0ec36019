"""`lora-studio queue`: what runs next, whether it does, and how many jobs share a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from studio.commands.terminal import AsJson, Workspace, emit, find, open_studio, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from studio.service import Studio
    from studio.views import QueueView

app = typer.Typer(help="See and order what waits to be run.", no_args_is_help=True)
END = 1_000_000  # places: further than any queue is long
MOVES = {"up": -1, "down": 1, "first": -END, "last": END}


@app.command("list")
def list_queue(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """List the waiting jobs in their order."""
    with open_studio(workspace) as studio:
        _show(studio, studio.board.queue(), as_json)


@app.command()
def move(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id or name of a waiting job.")],
    where: Annotated[str, typer.Argument(help="up, down, first or last.")],
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Change the order of the waiting jobs."""
    if where not in MOVES:
        raise typer.BadParameter(f"{where!r} is not one of: {', '.join(MOVES)}")
    with open_studio(workspace) as studio:
        found = find(studio.jobs(states=["queued"], limit=10_000), job, "job")
        _show(studio, studio.board.move(found.id, MOVES[where]), as_json)


@app.command()
def pause(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Start no further job; those that run go on."""
    with open_studio(workspace) as studio:
        _show(studio, studio.board.pause_queue(), as_json)


@app.command()
def resume(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Start jobs again."""
    with open_studio(workspace) as studio:
        _show(studio, studio.board.resume_queue(), as_json)


@app.command()
def share(
    jobs: Annotated[int, typer.Argument(help="Most jobs on one device at a time.")],
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Let several jobs run on one device, where its memory allows."""
    with open_studio(workspace) as studio:
        _show(studio, studio.board.share_devices(jobs), as_json)


def _show(studio: Studio, queue: QueueView, as_json: bool) -> None:
    shown: RenderableType = ""
    if not as_json:
        names = {job.id: job for job in studio.jobs(states=["queued"], limit=10_000)}
        waiting = [
            (place, job_id, names[job_id].name) for place, job_id in enumerate(queue.order, 1) if job_id in names
        ]
        shown = table(("next", "id", "name"), waiting, "Nothing waits." + (" The queue is paused." * queue.is_paused))
    emit(as_json, queue, shown)
