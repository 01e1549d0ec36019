"""Adding a base model: the starter, a hub id, a folder of the user's own (used in place), or a GGUF file (converted).

Spec: {"source": "starter" | "owner/name" | "/folder" | "/file.gguf", "name": ""}.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from core.errors import ModelError
from core.models import inspect_model
from studio.artifacts import model_row
from studio.context import JobContext
from studio.files import move_folder
from studio.kinds.kind import Outcome, job_kind
from studio.tables import ModelRow

STARTER = "starter"


def absolute_source(source: str) -> str:
    """`source` with a relative path made absolute, since the worker runs in another folder; other sources unchanged."""
    path = Path(source).expanduser()
    return str(path.absolute()) if source != STARTER and path.exists() else source


@job_kind("add_model", needs_device=False, needs_network=True)
def run(context: JobContext) -> Outcome:
    """Bring the model into the library and read what it is."""
    source = str(context.job.spec["source"])
    path = Path(source).expanduser()
    row = _registered(context, path) if path.is_absolute() and path.is_dir() else _fetched(context, source, path)
    return Outcome({"model_id": row.id}, (row,))


def _registered(context: JobContext, folder: Path) -> ModelRow:
    """A model in the user's own folder: inspected where it is, and never written to or deleted."""
    context.say("Reading the model")
    info = inspect_model(folder)
    return model_row(
        info, name=_name(context, folder.name), source=str(folder), folder=str(folder), job_id=context.job.id
    )


def _fetched(context: JobContext, source: str, path: Path) -> ModelRow:
    """A model that is downloaded or converted, checked, and moved into the workspace."""
    build = context.scratch / "model"
    origin = context.wait_for(_work(context, source, path, build))
    shutil.rmtree(build / ".cache", ignore_errors=True)  # the hub client's notes for resuming
    context.say("Checking the model")
    info = inspect_model(build)
    target = context.workspace.model_folder(context.job.id)
    context.workspace.discard(target)  # of an attempt that died between here and its last line
    move_folder(build, target)
    name = Path(source).stem if path.is_absolute() else source.rpartition("/")[2]
    return model_row(info, id=context.job.id, name=_name(context, name), source=origin, job_id=context.job.id)


def _work(context: JobContext, source: str, path: Path, build: Path) -> Callable[[], str]:
    """What has to be done to have the model in `build`; it returns in words where the model came from."""
    if source == STARTER:
        return lambda: _starter(context, build)
    if path.is_absolute() or source.endswith(".gguf"):
        return lambda: _converted(context, path, build)
    return lambda: _downloaded(context, source, build)


def _starter(context: JobContext, build: Path) -> str:
    from studio.starter import fetch_starter

    return fetch_starter(build, context.say)


def _converted(context: JobContext, file: Path, build: Path) -> str:
    if not file.is_file():
        raise ModelError(f"There is no folder or file {file.name!r}.", "Check the path; give it from the root (/).")
    from core.gguf import convert_gguf

    context.say(f"Converting {file.name}")
    convert_gguf(file, build)
    return f"GGUF file: {file}"


def _downloaded(context: JobContext, hub_id: str, build: Path) -> str:
    from core.hub import download_model

    context.say(f"Downloading {hub_id}")
    download_model(hub_id, build)
    return f"hub: {hub_id}"


def _name(context: JobContext, default: str) -> str:
    given = str(context.job.spec.get("name") or "")
    if given or context.job.spec["source"] != STARTER:
        return given or default
    from studio.starter import NAME

    return NAME
