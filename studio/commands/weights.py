"""`lora-studio merge` and `export`: turning an adapter into what other programs open."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import StudioError
from studio.commands.following import follow
from studio.commands.terminal import AsJson, Workspace, emit, facts, find, open_studio, plain, say, size

if TYPE_CHECKING:
    from studio.service import Studio

FORMATS = ("peft", "portable")


def merge(
    adapter: Annotated[str, typer.Argument(help="Id or name of an adapter.")],
    name: Annotated[str, typer.Option(help="What to call the merged model.")] = "",
    dtype: Annotated[
        str, typer.Option(help="base: the base's own number format; float32: nothing is rounded.")
    ] = "base",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is merged and verified.")] = True,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its base model and verify the result against base + adapter."""
    with open_studio(workspace) as studio:
        job = studio.merge(find(studio.adapters(), adapter, "adapter").id, name=name, dtype=dtype)
        if not wait:
            say(f"Queued. Follow it: lora-studio jobs show {job.id} --wait")
            emit(as_json, job, facts({"job": job.id, "state": job.state}))
            return
        done = follow(studio, job.id)
        model = studio.model(str(done.result["model_id"]))
        folder = studio.export_path("model", model.id)
    shown = {"model": model.id, "name": model.name, "folder": folder, **model.verified}
    emit(as_json, plain(model) | {"folder": folder}, facts(shown))


def export(
    item: Annotated[str, typer.Argument(help="Id or name of an adapter or a model.")],
    out: Annotated[Path, typer.Argument(help="Where to: a new folder, or a file that ends with .zip.")],
    format: Annotated[
        str, typer.Option(help="Of an adapter. peft: as it is; portable: as vLLM, llama.cpp and Ollama read it right.")
    ] = "peft",
    rank: Annotated[int | None, typer.Option(help="The most that a layer of a portable adapter keeps.")] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Copy an adapter (PEFT's layout) or a model (transformers' layout) out of the studio, as a folder or one zip."""
    with open_studio(workspace) as studio:
        kind, found = _item(studio, item)
        _check_format(kind, format, rank, out)
        with _exported(studio, kind, found.id, format, rank) as (folder, more):
            bytes_written = _written(folder, out)
    result = {"kind": kind, "id": found.id, "path": out.absolute(), "size_bytes": bytes_written, **more}
    emit(as_json, result, f"Wrote {size(bytes_written)} to {out.absolute()}")


def _check_format(kind: str, format: str, rank: int | None, out: Path) -> None:
    if format not in FORMATS:
        raise StudioError(f"There is no format {format!r}.", f"Pick one of: {', '.join(FORMATS)}.")
    if format == "peft" and rank is not None:
        raise StudioError("--rank is for portable adapters.", "Add --format portable.")
    if rank is not None and rank < 1:
        raise StudioError(f"--rank is {rank}.", "Give a rank of 1 or more.")
    if format == "portable" and kind == "model":
        raise StudioError("A model has one format only.", "Leave out --format.")
    if out.exists():
        raise StudioError(f"{out} already exists.", "Pick another name, or remove it first.")


@contextmanager
def _exported(
    studio: Studio, kind: str, item_id: str, format: str, rank: int | None
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder to copy, and what there is to tell of it; a portable adapter is made for the time being."""
    if format == "peft":
        yield studio.export_path(kind, item_id), {}
        return
    with tempfile.TemporaryDirectory(dir=studio.workspace.tmp) as scratch:
        made = studio.adapter_shelf.portable(item_id, Path(scratch) / "portable", rank, loads_torch=True)
        worst = max(made.losses.values())
        if worst:
            say(f"Every layer has rank {made.rank}; the change of a layer's weight is up to {worst:.2%} off.")
        yield made.folder, {"rank": made.rank, "largest_loss": worst}


def _written(folder: Path, out: Path) -> int:
    try:
        return _write(folder, out)
    except OSError as error:
        raise StudioError(
            f"{out} cannot be written: {error.strerror}.", "Pick another place, or free space."
        ) from error


def _item(studio: Studio, text: str) -> tuple[str, Any]:
    for kind, items in (("adapter", studio.adapters()), ("model", studio.models())):
        if any(text in (item.id, item.name) for item in items):
            return kind, find(items, text, kind)
    raise StudioError(f"There is no adapter or model {text!r}.", "See `lora-studio adapters list` and `models list`.")


def _write(folder: Path, out: Path) -> int:
    """Write the folder or the zip; under its name it is whole or not there. Returns its size."""
    if out.suffix == ".zip":
        from studio.downloads import write_zip

        return write_zip(folder, out).stat().st_size
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(folder, partial, ignore=shutil.ignore_patterns(".*"))
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
