"""`lora-studio jobs`: see and steer what runs in the background."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import ConfigError
from studio.commands.following import follow
from studio.commands.terminal import AsJson, Workspace, duration, emit, facts, find, open_studio, plain, table
from studio.remedies import AGAIN

if TYPE_CHECKING:
    from rich.console import RenderableType

    from studio.service import Studio
    from studio.views import JobView

app = typer.Typer(help="See and steer background jobs.", no_args_is_help=True)
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Id or name of a job.")]


@app.command("list")
def list_jobs(
    state: Annotated[list[str] | None, typer.Option(help="Only jobs in this state; may be given again.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest first.")] = 50,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """List the jobs, the newest first."""
    with open_studio(workspace) as studio:
        found = studio.jobs(states=state or (), limit=limit)
    emit(as_json, {"jobs": found}, _listing(found))


@app.command()
def show(
    job: JobName,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it until it is over.")] = False,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Show one job: where it stands, what it made, or why it failed; as JSON with all its scores."""
    with open_studio(workspace) as studio:
        view = _find(studio, job)
        if wait and not view.is_over:
            view = follow(studio, view.id)
        scores, fixes = studio.scores(view.id), studio.board.remedies(view.id)
    shown = job_facts(view, {f"--fix {fix.name}": fix.text for fix in fixes})
    emit(as_json, {**plain(view), "scores": plain(scores), "fixes": plain(fixes)}, shown)


@app.command()
def logs(
    job: JobName,
    max_bytes: Annotated[int, typer.Option(min=1, help="How much of the end to show.")] = 65536,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Show the end of a job's log."""
    from rich.text import Text

    with open_studio(workspace) as studio:
        view = _find(studio, job)
        text = studio.log_tail(view.id, max_bytes=max_bytes)
    emit(as_json, {"id": view.id, "log": text}, Text(text.rstrip("\n") or "The log is empty so far."))


@app.command()
def cancel(job: JobName, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """End a job without a result."""
    _steer(job, workspace, as_json, lambda studio, job_id: studio.cancel_job(job_id))


@app.command()
def pause(job: JobName, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Save a job at its next step and set it aside."""
    _steer(job, workspace, as_json, lambda studio, job_id: studio.pause_job(job_id))


@app.command()
def resume(job: JobName, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Go on with a paused job from its checkpoint, or try a failed one again."""
    _steer(job, workspace, as_json, lambda studio, job_id: studio.resume_job(job_id))


@app.command()
def stop(job: JobName, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Finish a job now and keep the best adapter so far."""
    _steer(job, workspace, as_json, lambda studio, job_id: studio.stop_job(job_id))


@app.command()
def restart(job: JobName, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """End the attempt at a running job, by force when it hangs, and go on from its last checkpoint."""
    _steer(job, workspace, as_json, lambda studio, job_id: studio.board.restart(job_id))


@app.command()
def duplicate(
    job: JobName,
    change: Annotated[list[str] | None, typer.Option("--set", help="A change: optim.learning_rate=1e-4.")] = None,
    name: Annotated[str, typer.Option(help="Name of the copy.")] = "",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Queue a copy of a job, with some settings changed."""
    changes = dict(_change(text) for text in change or ())
    _steer(job, workspace, as_json, lambda studio, job_id: studio.board.duplicate(job_id, changes, name=name))


@app.command()
def retry(
    job: JobName,
    with_fix: Annotated[bool, typer.Option("--with-fix", help="Change what the failure calls for.")] = False,
    fix: Annotated[str, typer.Option(help="The fix to apply, by its name; the first one unless given.")] = "",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Try a failed job again: as it is, or as a copy with the change that its failure calls for."""
    wanted = fix if with_fix or fix else AGAIN
    _steer(job, workspace, as_json, lambda studio, job_id: studio.board.retry(job_id, wanted))


def job_facts(job: JobView, more: Mapping[str, str] | None = None) -> RenderableType:
    """One job as lines."""
    best = None if job.best_eval_loss is None else f"{job.best_eval_loss:.4f} at step {job.best_step}"
    shown = {"id": job.id, "name": job.name, "kind": job.kind, "state": job.state, "now": job.message}
    counted = "rows prepared" if job.counts_rows else "step"
    shown |= {counted: f"{job.step} of {job.total_steps}" if job.total_steps else "", "best eval loss": best or ""}
    shown |= {"error": job.error_what, "evidence": job.failure.get("evidence", ""), "fix": job.error_fix}
    return facts(shown | {name.replace("_", " "): str(value) for name, value in job.result.items()} | dict(more or {}))


def _steer(job: str, workspace: Path | None, as_json: bool, act: Callable[[Studio, str], JobView]) -> None:
    with open_studio(workspace) as studio:
        view = act(studio, _find(studio, job).id)
    emit(as_json, view, job_facts(view))


def _change(text: str) -> tuple[str, Any]:
    """The setting and the value of `data.max_length=512`, the value as YAML has it."""
    from studio.spec import read_value

    path, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r} is no change.", "Write it as data.max_length=512.")
    return path.strip(), read_value(value)


def _find(studio: Studio, text: str) -> JobView:
    found: JobView = find(studio.jobs(limit=10_000), text, "job")
    return found


def _listing(jobs: list[JobView]) -> RenderableType:
    rows = [
        (
            job.id,
            job.kind,
            job.name,
            job.state,
            f"{job.progress:.0%}",
            _loss(job.loss),
            _loss(job.best_eval_loss),
            duration(job.eta_s),
        )
        for job in jobs
    ]
    columns = ("id", "kind", "name", "state", "done", "loss", "best eval", "left")
    return table(columns, rows, "There are no jobs. Start one with `lora-studio train`.")


def _loss(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
