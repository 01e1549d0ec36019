"""How a handler talks to the page: it returns {component: value}; an error becomes a sentence, never a traceback."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr
from gradio.blocks import Block

from core.errors import StudioError
from studio.service import Studio
from ui.fragments import callout, esc
from ui.i18n import Translator

log = logging.getLogger(__name__)

# No name of our own in its place: Gradio refuses what the list that was sent last does not have.
ONCE_FILLED = "(dataset, ...form) => [window.loraStudioRestored ? dataset : null, ...form]"
Updates = dict[Any, Any]  # component -> its new value or gr.update
# Handlers are short and must not wait for the same handler of another page, hence no concurrency limit. They show their
# progress nowhere: else Gradio's page tells every output of every event at each of its stages, even where it is hidden,
# and walks through all components to find one. That was half of what loading the page cost.
QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "show_progress_on": [],
    "concurrency_limit": None,
    "api_visibility": "private",
}
# What shows no toast needs no queue either: one request brings its answer, where a queue takes one more for the stream.
DIRECT: dict[str, Any] = {**QUIET, "queue": False}


def guarded(
    message: gr.HTML, t: Translator, otherwise: Callable[[], Updates] = dict
) -> Callable[[Callable[..., Updates]], Callable[..., Any]]:
    """Show a StudioError of the handler in `message` and clear it on success; anything else is logged, and said so.

    `otherwise` gives what else changes on the page when the handler fails.
    """

    def wrap(handler: Callable[..., Updates]) -> Callable[..., Any]:
        @wraps(handler)
        def run(*args: Any, **options: Any) -> Any:
            try:
                return {message: "", **handler(*args, **options)}
            except StudioError as error:
                return {**otherwise(), message: explain(error, t)}
            except Exception:
                log.exception("the page's handler %s failed", handler.__qualname__)
                return {**otherwise(), message: callout("error", t("error.unexpected"), t("error.unexpected_fix"), t)}

        return run

    return wrap


def once_filled(studio: Studio, handler: Callable[..., Updates]) -> Callable[..., Updates]:
    """A handler of the Train form that leaves the page alone until the form is filled; its event needs `ONCE_FILLED`.

    A page that fills its form tells of every field, with what the others held; the first may be answered last.
    """

    @wraps(handler)
    def answer(dataset: str | None, *form: Any) -> Updates:
        return {} if not dataset and studio.datasets() else handler(dataset, *form)

    return answer


def guarded_stream(message: gr.HTML, t: Translator) -> Callable[[Callable[..., Iterator[Updates]]], Callable[..., Any]]:
    """`guarded` for a handler that yields its updates."""

    def wrap(handler: Callable[..., Iterator[Updates]]) -> Callable[..., Any]:
        @wraps(handler)
        def run(*args: Any, **options: Any) -> Iterator[Any]:
            try:
                yield from handler(*args, **options)
            except StudioError as error:
                yield {message: explain(error, t)}
            except Exception:
                log.exception("the page's handler %s failed", handler.__qualname__)
                yield {message: callout("error", t("error.unexpected"), t("error.unexpected_fix"), t)}

        return run

    return wrap


def tell(words: str, t: Translator) -> None:
    """A toast with good news."""
    gr.Info(words, title=t("level.info"))


def explain(error: StudioError, t: Translator) -> str:
    """The error as a box for the place where it arose, and as a toast for those who look elsewhere."""
    what = t.sentence(error.what)
    gr.Warning(esc(what), title=t("level.warning"))
    return callout("error", what, t.sentence(error.fix), t)


def only_changed(updates: Updates, seen: gr.State, marks: dict[str, str]) -> Any:
    """Leave out what the page already shows, so that an idle tick sends nothing; `marks` is the value of `seen`."""
    new = marks_of(updates)
    changed = {c: value for c, value in updates.items() if marks.get(str(c._id)) != new[str(c._id)]}
    return {**changed, seen: {**marks, **new}} if changed else gr.skip()


def marks_of(updates: Updates) -> dict[str, str]:
    """What `only_changed` compares with: a mark of what each component was told last."""
    return {str(component._id): _mark(value) for component, value in updates.items()}


def _mark(value: Any) -> str:
    """A component says where it lies in memory; what an update of it tells are the arguments it was made with."""
    told = (type(value).__name__, value._constructor_args) if isinstance(value, Block) else value
    return hashlib.blake2b(repr(told).encode(), digest_size=12).hexdigest()
