"""`lora-studio generate` and `compare`: ask a model, with and without its adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from core.config import GenerationConfig
from core.errors import ConfigError
from studio.commands.terminal import AsJson, Workspace, emit, find, find_model, open_studio, say, table

if TYPE_CHECKING:
    from studio.service import Studio
    from studio.views import ChatChunk, ChatPane

_DEFAULTS = GenerationConfig()
Prompt = Annotated[str, typer.Argument(help="What to ask.")]
Model = Annotated[str, typer.Option(help="Id or name of a model; not needed with an adapter.")]
System = Annotated[str, typer.Option(help="A system message before the prompt.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(help="0 always picks the most likely token.")]
TopP = Annotated[float, typer.Option(help="Pick among the likeliest tokens that hold this share.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same answer.")]


def generate(
    prompt: Prompt,
    model: Model = "",
    adapter: Annotated[str, typer.Option(help="Id or name of an adapter.")] = "",
    system: System = "",
    max_new_tokens: MaxNewTokens = _DEFAULTS.max_new_tokens,
    temperature: Temperature = _DEFAULTS.temperature,
    top_p: TopP = _DEFAULTS.top_p,
    seed: Seed = _DEFAULTS.seed,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Answer one prompt with a model or an adapter, as it is being written."""
    config = GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    with open_studio(workspace) as studio:
        model_id, panes = _panes(studio, model, [adapter] if adapter else [], with_base=not adapter)
        last = _ask(studio, model_id, panes, prompt, system, config, is_shown=not as_json)
    if as_json:
        emit(True, {"text": last.texts[0], "sha256": last.sha256[0], "model_id": model_id}, "")


def compare(
    prompt: Prompt,
    adapter: Annotated[list[str] | None, typer.Option(help="Id or name of an adapter; may be given again.")] = None,
    model: Model = "",
    system: System = "",
    max_new_tokens: MaxNewTokens = _DEFAULTS.max_new_tokens,
    temperature: Temperature = _DEFAULTS.temperature,
    top_p: TopP = _DEFAULTS.top_p,
    seed: Seed = _DEFAULTS.seed,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Answer one prompt with the bare base and with adapters, side by side."""
    config = GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    with open_studio(workspace) as studio:
        model_id, panes = _panes(studio, model, adapter or [], with_base=True)
        last = _ask(studio, model_id, panes, prompt, system, config, is_shown=False)
    answers = [
        {"label": pane.label, "adapter_id": pane.adapter_id, "sha256": digest, "text": text}
        for pane, digest, text in zip(panes, last.sha256, last.texts, strict=True)
    ]
    shown = table(
        ("", "adapter file", "answer"), [(a["label"], (a["sha256"] or "none")[:12], a["text"]) for a in answers]
    )
    emit(as_json, {"model_id": model_id, "prompt": prompt, "answers": answers}, shown)


def _panes(studio: Studio, model: str, adapters: Sequence[str], *, with_base: bool) -> tuple[str, list[ChatPane]]:
    """The model that is asked, and what answers; ConfigError when the adapters are of different models."""
    from studio.views import ChatPane

    found = [find(studio.adapters(), text, "adapter") for text in adapters]
    bases = {item.model_id for item in found} | ({find_model(studio, model).id} if model else set())
    if not bases:
        raise ConfigError("No model is named.", "Give --model or --adapter.")
    if len(bases) > 1:
        raise ConfigError("These adapters belong to different models.", "Compare adapters of one base model.")
    model_id = bases.pop()
    panes = [ChatPane(None, f"base: {studio.model(model_id).name}")] if with_base else []
    return model_id, panes + [ChatPane(item.id, item.name) for item in found]


def _ask(
    studio: Studio,
    model_id: str,
    panes: Sequence[ChatPane],
    prompt: str,
    system: str,
    config: GenerationConfig,
    *,
    is_shown: bool,
) -> ChatChunk:
    """The last chunk of the answers; with `is_shown` the first pane's text is written as it grows."""
    from core.config import to_dict

    turns = ([("system", system)] if system else []) + [("user", prompt)]
    written, chunk = 0, None
    for chunk in studio.chat(model_id, panes, [turns] * len(panes), **to_dict(config)):
        if chunk.message:
            say(chunk.message)
        if is_shown:
            typer.echo(chunk.texts[0][written:], nl=False)
            written = len(chunk.texts[0])
    if is_shown:
        typer.echo()
    if chunk is None:
        raise ConfigError("The model gave no answer.", "Try another prompt.")
    return chunk
