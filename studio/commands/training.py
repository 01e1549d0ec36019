"""`lora-studio train`: queue a training job, and watch it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.config import TrainConfig
from core.errors import ConfigError
from studio.commands.flags import train_config, with_train_flags
from studio.commands.following import follow
from studio.commands.terminal import (
    FAILED,
    AsJson,
    Workspace,
    duration,
    emit,
    facts,
    find,
    find_model,
    open_studio,
    say,
    size,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from studio.service import Studio
    from studio.views import DatasetView, JobView, PlanView


@with_train_flags
def train(
    model: Annotated[str, typer.Option(help="Id or name of a model of the library, or 'starter'.")] = "",
    dataset: Annotated[str, typer.Option(help="Id or name of a dataset of the library, or a file.")] = "",
    name: Annotated[str, typer.Option(help="Name of the job and its adapter.")] = "",
    config: Annotated[Path | None, typer.Option(help="Job file (YAML) to start from; flags override it.")] = None,
    save_config: Annotated[Path | None, typer.Option(help="Write the job as a YAML file, too.")] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Show what the run would take, and start nothing; exit code 1 when it cannot start."
        ),
    ] = False,
    then_merge: Annotated[bool, typer.Option("--then-merge", help="Merge the adapter once it is trained.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Watch the job until it is over.")] = True,
    workspace: Workspace = None,
    as_json: AsJson = False,
    **settings: Any,
) -> None:
    """Train an adapter: queue the job and watch it. Ctrl-C stops watching, not the job."""
    with open_studio(workspace) as studio:
        spec = _read(studio, config)
        model, dataset, name = model or spec["model"], dataset or spec["dataset"], name or spec["name"]
        made = train_config(settings, spec["train"])
        if not model or not dataset:
            missing = "dataset" if model else "model"
            raise ConfigError(f"No {missing} is named.", f"Give --{missing}, or a job file with --config.")
        base, data = find_model(studio, model), _dataset(studio, dataset)
        if save_config is not None:
            _save(save_config, name, model, dataset, made)
        if plan:
            view = studio.plan(base.id, data.id, made)
            emit(as_json, view, plan_facts(view))
            if not view.can_start:
                raise typer.Exit(FAILED)
            return
        _warn(studio.plan(base.id, data.id, made))
        job = studio.train(base.id, data.id, made, name=name)
        if then_merge:
            studio.board.merge_after(job.id)
        if wait:
            job = follow(studio, job.id)
        else:
            say(f"Queued. Follow it: lora-studio jobs show {job.id} --wait")
        emit(as_json, job, facts(outcome(studio, job)))


def outcome(studio: Studio, job: JobView) -> dict[str, Any]:
    """What a training job has come to, for people."""
    adapter_id = job.result.get("adapter_id")
    shown: dict[str, Any] = {"job": job.id, "state": job.state, "loss": _rounded(job.loss)}
    if job.best_eval_loss is not None:
        shown["best eval loss"] = f"{job.best_eval_loss:.4f} at step {job.best_step}"
        before = studio.untrained_loss(job.id)
        if before is not None and job.best_eval_loss > before:
            worse = f"The loss on held-out rows was {before:.4f} before training, so the adapter is worse than none."
            shown["warning"] = f"{worse} Train again with a tenth of the learning rate."
    if adapter_id:
        shown |= {"adapter": adapter_id, "folder": str(studio.export_path("adapter", str(adapter_id)))}
        shown["next"] = f'lora-studio compare "Hello" --adapter {adapter_id}   or   lora-studio merge {adapter_id}'
    return shown


def _warn(plan: PlanView) -> None:
    """Say what the page's plan shows beside the start button: a run may go on and still not be what was meant."""
    for check in plan.checks:
        if check.level == "warning":
            say(f"warning: {check.text} {check.fix}".strip())


def plan_facts(plan: PlanView) -> RenderableType:
    """A plan as lines: the work, what it needs, and every check."""
    shown: dict[str, Any] = {
        "rows": f"{plan.rows} and {plan.validation_rows} held out",
        "steps": plan.steps,
        "trainable": f"{plan.trainable_parameters:,} of {plan.total_parameters:,} parameters",
        "time": duration(plan.seconds) or "unknown until this machine has trained once",
        "memory": f"{size(plan.memory_total_bytes)} of {size(plan.memory_free_bytes)} free",
        "disk": size(plan.disk_bytes),
        "device": plan.device,
    }
    for number, check in enumerate(plan.checks, 1):
        shown[f"check {number}"] = f"[{check.level}] {check.text} {check.fix}".strip()
    return facts(shown)


def _read(studio: Studio, config: Path | None) -> dict[str, Any]:
    if config is None:
        return {"name": "", "model": "", "dataset": "", "train": TrainConfig()}
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"The job file {config} cannot be read.", "Check the path; it must be UTF-8 text.") from None
    return dict(studio.parse_spec_yaml(text))


def _dataset(studio: Studio, text: str) -> DatasetView:
    """A dataset of the library; a file is added first, which files the same content only once."""
    if Path(text).is_file():
        added = studio.add_dataset(Path(text))
        if added.bad_rows:
            say(f"{added.bad_rows:,} rows are left out. See why: lora-studio datasets add {shlex.quote(text)} --check")
        return added
    if Path(text).suffix and not any(item.name == text for item in studio.datasets()):
        raise ConfigError(
            f"There is no file or dataset {text!r}.", "Check the path, or see `lora-studio datasets list`."
        )
    found: DatasetView = find(studio.datasets(), text, "dataset")
    return found


def _save(path: Path, name: str, model: str, dataset: str, config: TrainConfig) -> None:
    from studio.spec import to_yaml

    try:
        path.write_text(to_yaml(name, model, dataset, config), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.", "Pick another place.") from None


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
