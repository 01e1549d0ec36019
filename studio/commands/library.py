"""`lora-studio models` and `adapters`: what there is to train, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.commands.following import follow
from studio.commands.terminal import (
    AsJson,
    Workspace,
    emit,
    facts,
    find,
    find_model,
    open_studio,
    plain,
    say,
    size,
    table,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from studio.views import LayerRankView, RankView

models = typer.Typer(help="Base and merged models.", no_args_is_help=True)
adapters = typer.Typer(help="Trained adapters.", no_args_is_help=True)
_LONG = ("targets", "problems")


@models.command("add")
def add_model(
    source: Annotated[str, typer.Argument(help="'starter', a hub id (owner/name), a folder, or a GGUF file.")],
    name: Annotated[str, typer.Option(help="What to call it.")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is there.")] = True,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Fetch, convert or register a base model."""
    path = Path(source).expanduser()
    with open_studio(workspace) as studio:
        job = studio.add_model(str(path.absolute()) if path.exists() and source != "starter" else source, name=name)
        if not wait:
            say(f"Queued. Follow it: lora-studio jobs show {job.id} --wait")
            emit(as_json, job, facts({"job": job.id, "state": job.state}))
            return
        done = follow(studio, job.id)
        model = studio.model(str(done.result["model_id"]))
    emit(as_json, model, _facts(model))


@models.command("list")
def list_models(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """List the models, the newest first."""
    with open_studio(workspace) as studio:
        found = studio.models()
    rows = [(m.id, m.name, m.kind, m.architecture, f"{m.parameters / 1e6:,.0f} M", size(m.size_bytes)) for m in found]
    columns = ("id", "name", "kind", "architecture", "parameters", "size")
    emit(as_json, {"models": found}, table(columns, rows, "There are no models. Try `lora-studio models add starter`."))


@models.command("show")
def show_model(
    model: Annotated[str, typer.Argument(help="Id or name.")], workspace: Workspace = None, as_json: AsJson = False
) -> None:
    """Show one model and the layers an adapter can go on."""
    from rich.console import Group

    with open_studio(workspace) as studio:
        view = find_model(studio, model)
    rows = [(t.name, t.group, t.count, ", ".join(f"{i} -> {o}" for i, o in t.shapes)) for t in view.targets]
    emit(as_json, view, Group(_facts(view), "", table(("layer", "group", "count", "in -> out"), rows)))


@models.command("delete")
def delete_model(
    model: Annotated[str, typer.Argument(help="Id or name.")], workspace: Workspace = None, as_json: AsJson = False
) -> None:
    """Delete a model that nothing needs; your own folders stay where they are."""
    with open_studio(workspace) as studio:
        view = find_model(studio, model, is_lost=True)
        studio.delete_model(view.id)
    emit(as_json, {"deleted": view.id}, f"Deleted the model {view.name}.")


@adapters.command("list")
def list_adapters(
    model: Annotated[str, typer.Option(help="Only those of this model.")] = "",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """List the adapters, the newest first."""
    with open_studio(workspace) as studio:
        found = studio.adapters(find_model(studio, model).id if model else None)
    rows = [
        (a.id, a.name, a.method, a.r, _number(a.lora_alpha, "g"), a.step, _number(a.eval_loss, ".4f"),
         size(a.size_bytes))
        for a in found
    ]  # fmt: skip
    columns = ("id", "name", "method", "rank", "alpha", "step", "eval loss", "size")
    emit(
        as_json, {"adapters": found}, table(columns, rows, "There are no adapters. Train one with `lora-studio train`.")
    )


@adapters.command("show")
def show_adapter(
    adapter: Annotated[str, typer.Argument(help="Id or name.")], workspace: Workspace = None, as_json: AsJson = False
) -> None:
    """Show one adapter and where its files are."""
    with open_studio(workspace) as studio:
        view = find(studio.adapters(), adapter, "adapter")
        folder = studio.export_path("adapter", view.id)
    emit(as_json, plain(view) | {"folder": folder}, facts({**plain(view), "folder": folder}))


@adapters.command("import")
def import_adapter(
    folder: Annotated[Path, typer.Argument(help="Folder in PEFT's layout: adapter_config.json and safetensors.")],
    model: Annotated[str, typer.Option(help="Id or name of its base, or 'starter'.")],
    name: Annotated[str, typer.Option(help="What to call it; the folder's name unless given.")] = "",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Add a copy of an adapter that was trained elsewhere, after checking that it fits its base."""
    with open_studio(workspace) as studio:
        base = find_model(studio, model)
        view = studio.adapter_shelf.take_in(folder.expanduser(), base.id, name.strip())
    emit(as_json, view, facts(plain(view)))


@adapters.command("delete")
def delete_adapter(
    adapter: Annotated[str, typer.Argument(help="Id or name.")], workspace: Workspace = None, as_json: AsJson = False
) -> None:
    """Delete an adapter that no unfinished job needs; what was merged or combined from it stays."""
    with open_studio(workspace) as studio:
        view = find(studio.adapters(), adapter, "adapter", is_lost=True)
        studio.delete_adapter(view.id)
    emit(as_json, {"deleted": view.id}, f"Deleted the adapter {view.name}.")


@adapters.command("rank")
def rank_of_adapter(
    adapter: Annotated[str, typer.Argument(help="Id or name.")], workspace: Workspace = None, as_json: AsJson = False
) -> None:
    """Show how much of its rank an adapter uses, layer by layer: for a smaller one, or for the next training."""
    from rich.console import Group

    with open_studio(workspace) as studio:
        view = studio.adapter_shelf.rank(find(studio.adapters(), adapter, "adapter").id, loads_torch=True)
    shown = [(one.path, one.rank, f"{one.norm:.4g}", f"{one.effective_rank:.1f}", *_ranks(one)) for one in view.layers]
    columns = ("layer", "rank", "norm", "effective", "90 %", "95 %", "99 %")
    sentence = (
        "This adapter changes nothing."
        if view.changes_nothing
        else f"95 % of this adapter's change fits into rank {view.rank_95} of {view.rank}."
    )
    emit(as_json, view, Group(table(columns, [*shown, ("all", view.rank, "", "", *_ranks(view))]), "", sentence))


@adapters.command("compress")
def compress_adapter(
    adapter: Annotated[str, typer.Argument(help="Id or name.")],
    rank: Annotated[int | None, typer.Option(help="The most that a layer keeps.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Or the share of its change that every layer keeps: 0.95.")
    ] = None,
    name: Annotated[str, typer.Option(help="What to call the new adapter.")] = "",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Make a smaller adapter out of one, and tell exactly what that loses. The first one stays as it is."""
    with open_studio(workspace) as studio:
        source = find(studio.adapters(), adapter, "adapter")
        made, found = studio.adapter_shelf.compress(source.id, rank, energy, name.strip(), loads_torch=True)
    lost = {"error": found.error, "relative_error": found.relative_error}
    say(
        f"The change of the weights is {found.relative_error:.3%} off; the file has {size(made.size_bytes)} "
        f"instead of {size(source.size_bytes)}."
    )
    emit(as_json, plain(made) | lost | {"ranks": found.ranks}, facts({**plain(made), **lost}))


@adapters.command("combine")
def combine_adapters(
    adapters: Annotated[list[str], typer.Argument(help="Ids or names of adapters of one model.")],
    weights: Annotated[str, typer.Option(help="One number for each: 0.7,0.3. Equal shares by default.")] = "",
    method: Annotated[str, typer.Option(help="cat: the exact sum, ranks add up; svd: the closest of --rank.")] = "cat",
    rank: Annotated[int | None, typer.Option(help="With svd: the most that a layer keeps.")] = None,
    name: Annotated[str, typer.Option(help="What to call the new adapter.")] = "",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Make a new adapter that is the weighted sum of others."""
    from studio.adapter_shelf import weights_of

    with open_studio(workspace) as studio:
        ids = [find(studio.adapters(), one, "adapter").id for one in adapters]
        shares = weights_of(weights, len(ids))
        made, found = studio.adapter_shelf.combine(ids, shares, method, rank, name.strip(), loads_torch=True)
    say(f"The new adapter is {found.relative_error:.3%} off the sum; its highest rank is {max(found.ranks.values())}.")
    emit(as_json, plain(made) | {"relative_error": found.relative_error}, facts(plain(made)))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _ranks(view: LayerRankView | RankView) -> tuple[int, int, int]:
    return view.rank_90, view.rank_95, view.rank_99


def _facts(view: object) -> RenderableType:
    """A view's short fields as lines."""
    return facts({name: value for name, value in plain(view).items() if name not in _LONG and value not in ({}, [])})
