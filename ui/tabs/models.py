"""Models: base models, adapters and merged models, where each came from, and how to take them home."""

from __future__ import annotations

from typing import Any

import gradio as gr

from core.errors import ConfigError
from studio.service import MERGE_DTYPES, Studio
from ui.fragments import DELEGATE, esc, heading
from ui.handlers import Updates, guarded, tell
from ui.i18n import Translator
from ui.model_cards import DISMISS, adapter_table, base_table, merged_list, work_cards
from ui.page import Page, Tab, new_key, request_key, unchecked
from ui.workshop import Workshop


class ModelsTab(Tab):
    """Adapters with Merge and Download; merged models with their verification; base models and how to add one."""

    id = "models"

    def __init__(self, studio: Studio, t: Translator) -> None:
        super().__init__(studio, t)
        self.key = request_key("models-key")
        self.workshop = Workshop(studio, t)

    def layout(self) -> None:
        """Adapters and merged models first: they are what one comes here for."""
        t = self.t
        self.message = gr.HTML(elem_id="models-message")
        self.work = gr.HTML(elem_id="models-work", js_on_load=DELEGATE)
        with gr.Column(elem_classes="card"):
            gr.HTML(heading(t("models.adapters"), t("models.adapters_text")))
            self.adapters = gr.HTML(elem_id="models-adapters", js_on_load=DELEGATE)
            with gr.Row(elem_classes="buttons end"):
                self.adapter = unchecked(
                    gr.Dropdown([], label=t("models.merge_which"), elem_id="models-adapter", filterable=False)
                )
                self.dtype = gr.Radio(
                    [(t(f"models.numbers_{name}"), name) for name in MERGE_DTYPES], value="base",
                    label=t("models.numbers"), elem_id="models-dtype",
                )  # fmt: skip
                self.merge = gr.Button(
                    t("models.merge"), variant="primary", interactive=False, elem_id="models-merge"
                )  # until the adapters are there to choose from
        with gr.Column(elem_classes="card"):
            gr.HTML(heading(t("models.merged"), t("models.merged_text")))
            self.merged = gr.HTML(elem_id="models-download", js_on_load=DELEGATE)
        self.workshop.layout()
        with gr.Column(elem_classes="card"):
            gr.HTML(heading(t("models.base"), t("models.base_text")))
            self.bases = gr.HTML(elem_id="models-base", js_on_load=DELEGATE)
            with gr.Row(elem_classes="buttons end"):
                self.source = gr.Textbox(
                    label=t("models.source"), placeholder="starter", info=t("models.source_info"),
                    elem_id="models-source", scale=3, max_length=1000,
                )  # fmt: skip
                self.name = gr.Textbox(label=t("models.name"), elem_id="models-name", scale=2, max_length=120)
                self.add = gr.Button(t("models.add"), elem_id="models-add", scale=1)
        with gr.Row(visible=False, elem_classes="buttons card", elem_id="models-confirm") as self.confirm:
            self.question = gr.HTML(elem_id="models-question")
            self.keep = gr.Button(t("confirm.keep"), size="sm", elem_id="models-keep")
            self.sure = gr.Button(t("confirm.delete"), size="sm", variant="stop", elem_id="models-delete-sure")
        self.doomed = gr.State(("", ""))

    @property
    def live_outputs(self) -> list[Any]:
        """The three libraries and the work under way."""
        libraries = [self.work, self.adapters, self.merged, self.bases, self.adapter, self.merge]
        return [*libraries, *self.workshop.live_outputs]

    @property
    def merge_outputs(self) -> list[Any]:
        """What starting a merge renews."""
        return [self.message, self.key, *self.live_outputs]

    def live(self, job_id: str, *inputs: Any) -> Updates:
        """Everything on this tab; the adapter chosen for a merge stays chosen."""
        chosen = inputs[0] if inputs else None
        models, adapters = self.studio.models(), self.studio.adapters()
        names = {model.id: model.name for model in models}
        ids = [adapter.id for adapter in adapters]
        value = chosen if chosen in ids else ids[0] if ids else None
        jobs = [job for job in self.studio.jobs(limit=50) if job.kind in ("merge", "add_model")]
        return {
            self.work: work_cards(jobs, self.t),
            self.adapters: adapter_table(adapters, names, self.t),
            self.merged: merged_list([model for model in models if model.kind == "merged"], names, self.t),
            self.bases: base_table([model for model in models if model.kind != "merged"], self.t),
            self.adapter: gr.Dropdown([(adapter.name, adapter.id) for adapter in adapters], value=value),
            self.merge: gr.Button(interactive=bool(adapters)),
            **self.workshop.live(adapters),
        }

    @property
    def live_inputs(self) -> list[Any]:
        """The adapter chosen for a merge."""
        return [self.adapter]

    def start_merge(self, adapter_id: str, key: str = "", dtype: str = "base") -> Updates:
        """Start a merge and show it at work."""
        name = self.t("models.merged_name", name=self.studio.adapter(adapter_id).name)
        key = key or f"merge-{adapter_id}-{new_key()}"
        job = self.studio.merge(adapter_id, name=name, dtype=dtype, idempotency_key=key)
        tell(self.t("models.merge_started"), self.t)
        return {self.message: "", self.key: new_key(), **self.live(job.id, adapter_id)}

    def wire(self, page: Page) -> None:
        """Connect merge, add, delete and the ways to a job."""
        safe = guarded(self.message, self.t)
        once = {"trigger_mode": "once"}
        self.listen(
            self.merge.click, safe(self._merge), [self.key, self.adapter, self.dtype], self.merge_outputs, **once
        )
        self.listen(
            self.add.click, safe(self._add), [self.key, self.source, self.name],
            [*self.merge_outputs, self.source, self.name], **once,
        )  # fmt: skip
        ask = [self.confirm, self.question, self.doomed, self.message]
        for library in (self.adapters, self.merged, self.bases):
            self.listen(library.click, safe(self._ask), [], ask)
        self.listen(self.keep.click, lambda: {self.confirm: gr.Row(visible=False)}, [], [self.confirm])
        self.listen(
            self.sure.click,
            safe(self._delete),
            [self.doomed],
            [self.confirm, self.message, page.seen, *self.live_outputs],
        )
        self.workshop.wire(self.listen, lambda: self.live(""), self.live_outputs)
        jobs = page.each.jobs

        def pressed(event: gr.EventData) -> Updates:
            if event.action == DISMISS:
                self.studio.delete_job(event.id)
                return {page.seen: {}, **self.live("")}
            return {page.job: event.id, **page.go("jobs"), **jobs.live(event.id)}

        shown = [self.message, page.seen, page.job, *page.go_outputs, *jobs.live_outputs, *self.live_outputs]
        self.listen(self.work.click, safe(pressed), [], shown)
        self._page = page

    def _merge(self, key: str, adapter_id: str | None, dtype: str) -> Updates:
        if not adapter_id:
            raise ConfigError(self.t("models.no_adapter"), self.t("models.no_adapter_fix"))
        return self.start_merge(adapter_id, key, dtype)

    def _add(self, key: str, source: str, name: str) -> Updates:
        if not (source or "").strip():
            raise ConfigError(self.t("models.no_source"), self.t("models.no_source_fix"))
        job = self.studio.add_model(source.strip(), name=(name or "").strip(), idempotency_key=key)
        tell(self.t("models.add_started"), self.t)
        return {self.key: new_key(), self.source: "", self.name: "", **self.live(job.id)}

    def _ask(self, event: gr.EventData) -> Updates:
        kind, item_id = str(event.action), str(event.id)
        name = (self.studio.adapter(item_id) if kind == "adapter" else self.studio.model(item_id)).name
        question = f"<p>{esc(self.t('models.really', name=name))}</p>"
        return {self.confirm: gr.Row(visible=True), self.question: question, self.doomed: (kind, item_id)}

    def _delete(self, doomed: tuple[str, str]) -> Updates:
        kind, item_id = doomed
        (self.studio.delete_adapter if kind == "adapter" else self.studio.delete_model)(item_id)
        return {self.confirm: gr.Row(visible=False), self._page.seen: {}, **self.live("")}
