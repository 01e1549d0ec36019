"""Compare: the bare base model and up to three adapters answer the same prompt, side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from core.errors import ConfigError, StudioError
from studio.service import Studio
from studio.views import AdapterView, ChatChunk, ChatPane
from ui.fragments import DELEGATE, callout, heading
from ui.handlers import Updates, guarded, guarded_stream
from ui.i18n import Translator
from ui.page import Page, Tab, remembered, unchecked
from ui.panes import Conversation, Transcript, answered, example_chips, first_question, pane_html, with_prompt

MAX_ADAPTERS = 3
_EXAMPLES = 4
_EVERY_S = 0.08  # the panes are redrawn no more often than this


class CompareTab(Tab):
    """One prompt, shared settings and a fixed seed, so that a difference comes from the weights."""

    id = "compare"

    def __init__(self, studio: Studio, t: Translator) -> None:
        super().__init__(studio, t)
        # Outside the tab's own context: Gradio fills what is inside a tab only once the tab is opened.
        self.transcript = remembered({}, "compare")
        self.stops: dict[str, threading.Event] = {}  # a page's running answer, by its session; no state, only a handle

    def layout(self) -> None:
        """Settings on top, then the panes, then the prompt."""
        t = self.t
        with gr.Column(elem_classes="card"):
            gr.HTML(heading(t("compare.title"), t("compare.text")))
            with gr.Row():
                self.model = unchecked(
                    gr.Dropdown([], label=t("compare.model"), elem_id="compare-model", filterable=False, scale=2)
                )
                self.adapters = unchecked(gr.Dropdown(
                    [], multiselect=True, max_choices=MAX_ADAPTERS, label=t("compare.adapters"),
                    elem_id="compare-adapters", scale=3,
                ))  # fmt: skip
            self._layout_settings()
        self.message = gr.HTML(elem_id="compare-message")
        with gr.Row(elem_classes="panes"):
            self.panes = []
            for place in range(MAX_ADAPTERS + 1):
                visible = place < 2
                with gr.Column(min_width=260, elem_classes="card pane", visible=visible) as column:
                    self.panes.append(
                        (column, gr.HTML(elem_id=f"compare-pane-{place}", autoscroll=True, max_height=520))
                    )
        with gr.Column(elem_classes="card"):
            self._layout_prompt()

    def _layout_settings(self) -> None:
        t = self.t
        with gr.Accordion(t("compare.settings"), open=False, elem_id="compare-settings"):
            self.system = gr.Textbox(label=t("compare.system"), elem_id="compare-system", lines=1, max_length=4000)
            with gr.Row(elem_classes="numbers"):
                self.temperature = gr.Slider(
                    0, 2, 0.0, step=0.05, label=t("compare.temperature"), info=t("compare.temperature_info"),
                    elem_id="compare-temperature",
                )  # fmt: skip
                self.top_p = gr.Slider(0.05, 1, 0.9, step=0.05, label=t("compare.top_p"), elem_id="compare-top-p")
                self.length = gr.Slider(8, 1024, 128, step=8, label=t("compare.length"), elem_id="compare-max-tokens")
                self.seed = gr.Number(0, precision=0, label=t("compare.seed"), elem_id="compare-seed", minimum=0)

    def _layout_prompt(self) -> None:
        t = self.t
        self.examples = gr.HTML(elem_id="compare-examples", js_on_load=DELEGATE)
        self.prompt = gr.Textbox(
            label=t("compare.prompt"), placeholder=t("compare.prompt_hint"), lines=2, max_lines=8,
            elem_id="compare-prompt", max_length=20_000,
        )  # fmt: skip
        with gr.Row(elem_classes="buttons"):
            self.send = gr.Button(t("compare.send"), variant="primary", elem_id="compare-send")
            self.stop = gr.Button(t("compare.stop"), elem_id="compare-stop", interactive=False)
            self.clear = gr.Button(t("compare.clear"), elem_id="compare-clear")

    # -- choosing

    @property
    def choice_outputs(self) -> list[Any]:
        """What choosing a model or adapters renews."""
        return [self.model, self.adapters, self.examples, self.message, self.transcript, *self._pane_outputs]

    @property
    def _pane_outputs(self) -> list[Any]:
        return [part for pane in self.panes for part in pane]

    def choose(self, model_id: str | None, adapter_ids: list[str]) -> Updates:
        """Panes for the base and these adapters, with an empty conversation."""
        return self._show(model_id, adapter_ids, Transcript())

    def shown(self, transcript: Transcript, request: gr.Request) -> Any:
        """The last conversation of this browser where its model and adapters still exist, else a fresh one.

        A question whose answer was not waited for stands in the form again.
        """
        if str(request.session_hash) in self.stops:  # the answer is being written into the panes
            return gr.skip()
        kept: Transcript = transcript if isinstance(transcript, dict) else {}
        asked = kept.get("asked", "")
        if kept.get("model") not in {model.id for model in self.studio.models()}:
            newest = self.studio.adapters()
            kept = {"model": newest[0].model_id, "adapters": [newest[0].id]} if newest else {}
        return {
            **self._show(kept.get("model"), kept.get("adapters", []), kept),
            **({self.prompt: asked} if asked else {}),
        }

    def _show(self, model_id: str | None, adapter_ids: list[str], kept: Transcript) -> Updates:
        models = self.studio.models()
        model_id = model_id or (models[0].id if models else None)
        adapters = self.studio.adapters(model_id) if model_id else []
        known = {adapter.id: adapter for adapter in adapters}
        chosen = [item for item in adapter_ids if item in known][:MAX_ADAPTERS]
        same = kept.get("model") == model_id and kept.get("adapters") == chosen
        state = kept if same else {"model": model_id, "adapters": chosen}
        updates: Updates = {
            self.model: gr.Dropdown([(model.name, model.id) for model in models], value=model_id),
            self.adapters: gr.Dropdown([(adapter.name, adapter.id) for adapter in adapters], value=chosen),
            self.examples: example_chips(self._dataset_prompts(known[chosen[0]]) if chosen else [], self.t),
            self.transcript: state,
            self.message: self._hint(model_id, bool(adapters)),
        }
        return {**updates, **self._draw(self._labels(chosen), state.get("turns", []), state.get("sha256", []))}

    def _hint(self, model_id: str | None, has_adapters: bool) -> str:
        if not model_id:
            return callout("info", self.t("train.no_model"), self.t("train.no_model_fix"), self.t)
        if not has_adapters:
            return callout("info", self.t("compare.no_adapters"), self.t("compare.no_adapters_text"), self.t)
        return ""

    def _labels(self, adapter_ids: list[str]) -> list[ChatPane]:
        named = [ChatPane(item, self.studio.adapter(item).name) for item in adapter_ids]
        return [ChatPane(None, self.t("compare.base")), *named]

    def _draw(self, panes: list[ChatPane], turns: list[Conversation], sha256: list[str], waiting: str = "") -> Updates:
        updates: Updates = {}
        for place, (column, pane) in enumerate(self.panes):
            updates[column] = gr.Column(visible=place < len(panes))
            if place < len(panes):
                said = turns[place] if place < len(turns) else []
                used = sha256[place] if place < len(sha256) else None
                updates[pane] = pane_html(panes[place], said, used, waiting, self.t)
        return updates

    def _dataset_prompts(self, adapter: AdapterView) -> list[tuple[str, str]]:
        """(system, first question) of a few rows of the dataset that the adapter was trained on."""
        try:
            spec = self.studio.job(adapter.job_id or "").spec
            rows = self.studio.preview(str(spec["dataset_id"]), start=0, count=_EXAMPLES * 3)
        except (StudioError, KeyError):  # the job or the dataset is gone: then there are no examples
            return []
        return [asked for row in rows if (asked := first_question(row.turns))][:_EXAMPLES]

    # -- events

    def wire(self, page: Page) -> None:
        """Connect choices, examples and the conversation."""
        safe = guarded(self.message, self.t)
        self.listen(self.model.input, safe(lambda model: self.choose(model, [])), [self.model], self.choice_outputs)
        self.listen(self.adapters.input, safe(self.choose), [self.model, self.adapters], self.choice_outputs)
        self.listen(self.examples.click, self._use_example, [], [self.prompt, self.system])
        inputs = [
            self.transcript, self.prompt, self.model, self.adapters,
            self.system, self.temperature, self.top_p, self.length, self.seed,
        ]  # fmt: skip
        outputs = [self.message, self.prompt, self.send, self.stop, self.transcript, *self._pane_outputs]
        answer = guarded_stream(self.message, self.t)(self._answer)
        for event in (self.send.click, self.prompt.submit):
            done = self.listen(event, answer, inputs, outputs, trigger_mode="once")
            self.listen(done.then, self._idle, [], [self.send, self.stop])
        self.listen(self.stop.click, self._halt, [], [self.stop])
        self.listen(self.clear.click, safe(self._clear), [self.model, self.adapters], self.choice_outputs)

    def _use_example(self, event: gr.EventData) -> Updates:
        return {self.prompt: event.id, self.system: event.action}

    def _clear(self, model: str | None, adapters: list[str], request: gr.Request) -> Updates:
        running = self.stops.pop(str(request.session_hash), None)  # which tells `_stream` that nothing is to be kept
        if running is not None:
            running.set()
        return self.choose(model, adapters or [])

    def _idle(self) -> Updates:
        return {self.send: gr.Button(interactive=True), self.stop: gr.Button(interactive=False)}

    def _halt(self, request: gr.Request) -> Updates:
        event = self.stops.get(str(request.session_hash))
        if event is not None:
            event.set()
        return {self.stop: gr.Button(interactive=False)}

    def _answer(
        self, transcript: Transcript, prompt: str, model: str | None, adapters: list[str], system: str,
        temperature: float, top_p: float, length: float, seed: float | None, request: gr.Request,
    ) -> Iterator[Updates]:  # fmt: skip
        if not model:
            raise ConfigError(self.t("train.no_model"), self.t("train.no_model_fix"))
        if not (prompt or "").strip():
            raise ConfigError(self.t("compare.no_prompt"), self.t("compare.no_prompt_fix"))
        panes = self._labels(list(adapters or [])[:MAX_ADAPTERS])
        kept: Transcript = transcript if isinstance(transcript, dict) else {}
        turns = with_prompt(kept.get("turns", []), len(panes), prompt.strip(), (system or "").strip())
        state = Transcript(model=model, adapters=list(adapters or []), turns=turns)
        waiting = [[*said, ["assistant", ""]] for said in turns]
        yield {
            self.message: "", self.prompt: "", self.send: gr.Button(interactive=False),
            self.stop: gr.Button(interactive=True), **self._draw(panes, waiting, [], "…"),
            self.transcript: {**kept, "model": model, "adapters": list(adapters or []), "asked": prompt},
        }  # fmt: skip
        try:
            chunks = self.studio.chat(
                model, panes, [[(role, text) for role, text in said] for said in turns],
                max_new_tokens=int(length), temperature=float(temperature), top_p=float(top_p), seed=int(seed or 0),
            )  # fmt: skip
            yield from self._stream(panes, state, chunks, str(request.session_hash))
        except StudioError:  # the question is not lost: it stands in the form again
            yield {
                self.prompt: prompt, self.transcript: kept,
                **self._draw(panes, kept.get("turns", []), kept.get("sha256", [])),
            }  # fmt: skip
            raise

    def _stream(
        self, panes: list[ChatPane], state: Transcript, chunks: Iterator[ChatChunk], session: str
    ) -> Iterator[Updates]:
        stop = self.stops[session] = threading.Event()
        turns, drawn, last = state["turns"], 0.0, None
        try:
            for last in chunks:
                if stop.is_set():
                    break
                if time.monotonic() - drawn >= _EVERY_S:
                    drawn = time.monotonic()
                    waiting = self.t.sentence(last.message) or "…"
                    yield self._draw(panes, answered(turns, last), list(last.sha256), waiting)
        finally:  # also when the page is closed: the chat process must stop computing
            is_cleared = self.stops.get(session) is not stop
            if not is_cleared:  # else another answer's may stand there by now
                del self.stops[session]
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
        if is_cleared:
            fresh = Transcript(model=state["model"], adapters=state["adapters"])
            yield {self.transcript: fresh, **self._draw(panes, [], [])}
        elif last is not None:
            state = Transcript(
                model=state["model"], adapters=state["adapters"],
                turns=answered(turns, last), sha256=list(last.sha256),
            )  # fmt: skip
            yield {self.transcript: state, **self._draw(panes, state["turns"], state["sha256"])}
