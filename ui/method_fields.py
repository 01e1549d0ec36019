"""Picking a method: its list, what it is, and the fields that mean something to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from core.methods import listed, methods
from studio.views import TargetView
from ui import forms
from ui.fragments import esc
from ui.handlers import Updates
from ui.i18n import Translator
from ui.quantities import count_text

METHOD = "method"
NUMBERS_FORMAT = "quantization"  # of the base: asked beside the method, since both decide what fits into memory


class MethodFields:
    """The method's part of the training form; `inputs` are its components by field name."""

    def __init__(self, t: Translator) -> None:
        self.t = t
        self.specs = {spec.name: spec for spec in forms.fields()}
        self.inputs: dict[str, gr.components.Component] = {}
        self.panes: dict[str, gr.Row] = {}  # of the methods that have options
        self.parts: list[gr.Column] = []  # hidden for methods that choose their own places

    def layout(self) -> None:
        """The list, the note under it, and one row of options a method."""
        with gr.Row(elem_id="train-method-row"):
            for name, scale in ((METHOD, 3), (NUMBERS_FORMAT, 2)):
                self._add(name, scale=scale)
        self.note = gr.HTML(method_note(self.specs[METHOD].default, self.t), elem_id="train-method-note")
        for method in listed():
            if own := forms.options(method):
                with gr.Row(visible=False, elem_classes="numbers wider", elem_id=f"train-options-{method}") as pane:
                    for spec in own:
                        self._add(spec.name)
                self.panes[method] = pane

    def _add(self, name: str, **look: Any) -> None:
        self.inputs[name] = forms.component(self.specs[name], self.t, **look)

    @contextmanager
    def of_places(self, **look: Any) -> Iterator[None]:
        """A part of the form that only methods with a choice of layers have."""
        with gr.Column(**look) as part:
            yield
        self.parts.append(part)

    def outputs(self, inputs: dict[str, Any]) -> list[Any]:
        """What a change of method renews."""
        shared = [part for name, part in inputs.items() if self.specs[name].section == "adapter" and name != METHOD]
        return [self.note, *self.panes.values(), *self.parts, *shared]

    def shown(self, method: str, inputs: dict[str, Any], changed: dict[str, Any]) -> Updates:
        """The fields of a method, and only these; those in `changed` with a new value."""
        about = methods.get(method)
        found: Updates = {self.note: method_note(method, self.t)}
        found |= {pane: gr.Row(visible=name == method) for name, pane in self.panes.items()}
        found |= {part: gr.Column(visible="target_modules" in about.uses) for part in self.parts}
        for name, part in inputs.items():
            if self.specs[name].section == "adapter" and name != METHOD:
                value = {"value": changed[name]} if name in changed else {}
                found[part] = gr.update(visible=forms.is_shown(self.specs[name], method), **value)
        return found


def fitting(method: str, values: dict[str, Any]) -> dict[str, Any]:
    """What a newly picked method wants to be set otherwise; a number that somebody typed is left alone."""
    usual = {spec.name: spec.default for spec in forms.fields()}
    known = [usual, *(forms.suggested(other) for other in listed())]
    return {
        name: value
        for name, value in forms.suggested(method).items()
        if values[name] != value and any(values[name] == one[name] for one in known)
    }


def target_label(target: TargetView) -> str:
    """A kind of layer in a line: q_proj · 576→576 · ×30 · 10.0 M."""
    shapes = ", ".join(f"{inner:,}→{outer:,}" for inner, outer in target.shapes[:2])
    more = "…" if len(target.shapes) > 2 else ""
    return f"{target.name} · {shapes}{more} · ×{target.count} · {count_text(target.parameters)}"


def method_note(method: str, t: Translator) -> str:
    """What a method does, where to read about it, and what cannot be done with it, as HTML."""
    about = methods.get(method)
    words = [esc(t.sentence(about.summary))]
    if url := about.paper_url():
        words.append(f'<a href="{esc(url)}" target="_blank" rel="noopener noreferrer">{esc(about.paper)}</a>')
    else:
        words.append(esc(about.paper))
    if reason := about.why_unmergeable():
        words.append(f"<b>{esc(t.sentence(reason))}</b>")
    return f'<p class="caption">{" ".join(words)}</p>'
