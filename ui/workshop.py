"""What can be made of trained adapters: a look at their ranks, smaller ones, sums of several, and files for others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from core.combine import METHODS
from core.errors import ConfigError
from studio.adapter_shelf import weights_of
from studio.service import Studio
from studio.views import AdapterView
from ui.fragments import callout, download, heading
from ui.handlers import Updates, guarded
from ui.i18n import Translator
from ui.page import unchecked
from ui.quantities import bytes_text, share_text
from ui.rank_card import rank_card

Listen = Callable[..., Any]


class Workshop:
    """Two cards of the models tab; `renewed` gives what else the tab shows once there is a new adapter."""

    def __init__(self, studio: Studio, t: Translator) -> None:
        self.studio, self.t = studio, t

    def layout(self) -> None:
        """Ranks and a smaller adapter, then sums."""
        t = self.t
        with gr.Column(elem_classes="card"):
            gr.HTML(heading(t("workshop.rank"), t("workshop.rank_text")))
            self.chosen = unchecked(
                gr.Dropdown([], label=t("workshop.which"), elem_id="workshop-adapter", filterable=False)
            )
            self.picture = gr.HTML(elem_id="workshop-rank")
            with gr.Row(elem_classes="buttons end", visible=False) as self.smaller:
                self.keep = gr.Number(
                    value=None, precision=0, label=t("workshop.keep"), info=t("workshop.keep_info"),
                    elem_id="workshop-keep",
                )  # fmt: skip
                self.shrink = gr.Button(t("workshop.shrink"), elem_id="workshop-shrink")
                self.portable = gr.HTML(elem_id="workshop-portable")
        with gr.Column(elem_classes="card"):
            gr.HTML(heading(t("workshop.sum"), t("workshop.sum_text")))
            with gr.Row(elem_classes="buttons end"):
                self.parts = unchecked(
                    gr.Dropdown(
                        [], label=t("workshop.parts"), elem_id="workshop-parts", multiselect=True, filterable=False,
                        scale=3,
                    )
                )  # fmt: skip
                self.weights = gr.Textbox(
                    label=t("workshop.weights"), placeholder="0.5, 0.5", elem_id="workshop-weights", max_length=200
                )
            with gr.Row(elem_classes="buttons end"):
                self.way = gr.Radio(
                    [(t(f"workshop.{name}"), name) for name in METHODS], value=METHODS[0], label=t("workshop.way"),
                    elem_id="workshop-way",
                )  # fmt: skip
                self.rank = gr.Number(
                    value=16, precision=0, minimum=1, label=t("workshop.svd_rank"), elem_id="workshop-svd-rank",
                    visible=False,
                )  # fmt: skip
                self.combine = gr.Button(t("workshop.combine"), elem_id="workshop-combine")
        self.message = gr.HTML(elem_id="workshop-message")

    @property
    def live_outputs(self) -> list[Any]:
        """The two lists of adapters."""
        return [self.chosen, self.parts]

    def live(self, adapters: Sequence[AdapterView]) -> Updates:
        """Today's adapters to choose from; what is chosen stays."""
        choices = [(adapter.name, adapter.id) for adapter in adapters]
        return {self.chosen: gr.Dropdown(choices), self.parts: gr.Dropdown(choices)}

    def wire(self, listen: Listen, renewed: Callable[[], Updates], outputs: Sequence[Any]) -> None:
        """Connect the cards; `outputs` are what `renewed` fills."""
        safe = guarded(self.message, self.t, lambda: {self.picture: "", self.portable: ""})
        shown = [self.picture, self.smaller, self.keep, self.portable, self.message]
        listen(self.way.change, lambda way: gr.Number(visible=way == "svd"), [self.way], [self.rank])
        listen(self.chosen.change, safe(self._show), [self.chosen], shown)
        made = [self.message, *outputs]
        plain = guarded(self.message, self.t)

        def shrink(adapter_id: str | None, rank: float | None) -> Updates:
            said = self._shrink(adapter_id, rank)
            return {**renewed(), self.message: said}

        def add_up(parts: list[str] | None, weights: str, way: str, rank: float | None) -> Updates:
            said = self._combine(parts or [], weights, way, rank)
            return {**renewed(), self.message: said}

        listen(self.shrink.click, plain(shrink), [self.chosen, self.keep], made, trigger_mode="once")
        listen(
            self.combine.click, plain(add_up), [self.parts, self.weights, self.way, self.rank], made,
            trigger_mode="once",
        )  # fmt: skip

    def _show(self, adapter_id: str | None) -> Updates:
        if not adapter_id:
            return {self.picture: "", self.portable: "", self.smaller: gr.Row(visible=False)}
        adapter = self.studio.adapter(adapter_id)
        if adapter.unmergeable:
            said = callout("info", self.t.sentence(adapter.unmergeable), "", self.t)
            return {self.picture: said, self.portable: "", self.smaller: gr.Row(visible=False)}
        view = self.studio.adapter_shelf.rank(adapter_id)
        link = download(self.t("workshop.portable"), "portable", adapter_id)
        return {
            self.picture: rank_card(view, self.t), self.keep: view.rank_95, self.portable: link,
            self.smaller: gr.Row(visible=True),
        }  # fmt: skip

    def _shrink(self, adapter_id: str | None, rank: float | None) -> str:
        if not adapter_id or not rank:
            raise ConfigError(self.t("workshop.nothing"), self.t("workshop.nothing_fix"))
        before = self.studio.adapter(adapter_id)
        made, found = self.studio.adapter_shelf.compress(adapter_id, int(rank), None)
        sizes = {"before": bytes_text(before.size_bytes), "after": bytes_text(made.size_bytes)}
        error = share_text(found.relative_error, 3)
        return callout("ok", self.t("workshop.shrunk", name=made.name), self.t("workshop.lost", error=error, **sizes))

    def _combine(self, parts: list[str], weights: str, way: str, rank: float | None) -> str:
        if not parts:
            raise ConfigError(self.t("workshop.nothing"), self.t("workshop.nothing_fix"))
        r = int(rank) if rank and way == "svd" else None
        made, found = self.studio.adapter_shelf.combine(parts, weights_of(weights, len(parts)), way, r)
        figures = {"error": share_text(found.relative_error, 3), "r": max(found.ranks.values())}
        return callout("ok", self.t("workshop.shrunk", name=made.name), self.t("workshop.summed", **figures))
