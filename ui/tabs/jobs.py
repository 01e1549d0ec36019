"""Jobs: every job in a table, and the chosen one live: curve, progress, log, checkpoints, and what can be done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from core.config import TrainConfig, from_dict
from core.errors import StudioError
from studio.views import JobView, QueueView
from ui.fragments import DELEGATE, empty, heading
from ui.handlers import Updates, guarded, marks_of, tell
from ui.job_card import (
    FIX,
    MADE,
    RESTART,
    checkpoint_table,
    failure_box,
    figures,
    job_table,
    log_box,
    quiet_box,
    result_box,
)
from ui.job_file import draft_of, tell_loaded
from ui.page import Page, Tab
from ui.plots import loss_plot
from ui.queue_bar import DOWN, FEWER, MORE, PAUSE, QUEUE, UP, queue_bar
from ui.score_card import DRAWN, score_card

# What may be asked of a job in each state; the service checks it again.
ACTIONS = {
    "queued": ("pause", "cancel", "chain", "duplicate"),
    "running": ("pause", "stop", "cancel", "chain", "duplicate"),
    "paused": ("resume", "cancel", "chain", "duplicate"),
    "failed": ("resume", "duplicate", "delete"),
    "succeeded": ("duplicate", "delete"),
    "cancelled": ("duplicate", "delete"),
}
TRAINING_ONLY = {"pause", "stop", "chain", "duplicate"}
_LOG_BYTES = 16_384


class JobsTab(Tab):
    """The table on top, the chosen job under it; both are a function of the job store, so a reload shows the same."""

    id = "jobs"

    def layout(self) -> None:
        """Table, then the detail of one job."""
        t = self.t
        with gr.Column(elem_classes="card"):
            gr.HTML(heading(t("jobs.title"), t("jobs.text")))
            self.queue = gr.HTML(elem_id="jobs-queue", js_on_load=DELEGATE)
            self.table = gr.HTML(elem_id="jobs-table", js_on_load=DELEGATE)
        with gr.Column(elem_classes="card", visible=False, elem_id="job-detail") as self.detail:
            self.progress = gr.HTML(elem_id="job-progress")
            self._layout_buttons()
            self.message = gr.HTML(elem_id="job-message")
            self.outcome = gr.HTML(elem_id="job-outcome", js_on_load=DELEGATE)
            with gr.Row(elem_classes="split") as self.learning:
                with gr.Column(scale=7, min_width=320):
                    self.log_scale = gr.Checkbox(label=t("jobs.log_scale"), elem_id="job-log-scale", container=False)
                    self.curve = gr.HTML(elem_id="job-curve")
                    self.scores = gr.HTML(elem_id="job-scores")
                with gr.Column(scale=4, min_width=280):
                    self.checkpoints = gr.HTML(elem_id="job-checkpoints")
            with gr.Accordion(t("jobs.log"), open=False, elem_id="job-log-box"):
                self.log = gr.HTML(elem_id="job-log", autoscroll=True, max_height=320)
            with gr.Accordion(t("jobs.config"), open=False, elem_id="job-config-box") as self.config_box:
                self.config = gr.Code(
                    language="yaml", interactive=False, show_label=False, elem_id="job-config", label=t("jobs.config"),
                    buttons=["copy", "download"], show_line_numbers=False, max_lines=24,
                )  # fmt: skip

    def _layout_buttons(self) -> None:
        t = self.t
        self.buttons: dict[str, gr.Button] = {}
        with gr.Row(elem_classes="buttons"):
            for name in ("compare", "merge"):
                self.buttons[name] = gr.Button(
                    t(f"jobs.{name}"), variant="primary", size="sm", visible=False, elem_id=f"job-{name}"
                )
            for name in ("pause", "resume", "stop", "cancel", "chain", "duplicate", "delete"):
                self.buttons[name] = gr.Button(t(f"jobs.{name}"), size="sm", visible=False, elem_id=f"job-{name}")
            self.keep = gr.Button(t("confirm.keep"), size="sm", visible=False, elem_id="job-delete-keep")
            self.sure = gr.Button(
                t("confirm.delete"), size="sm", variant="stop", visible=False, elem_id="job-delete-sure"
            )

    @property
    def live_outputs(self) -> list[Any]:
        """Everything that depends on the job store."""
        return [
            self.queue, self.table, self.detail,
            self.progress, self.outcome, self.learning, self.curve, self.scores, self.checkpoints,
            self.log, self.config, self.config_box, *self.buttons.values(), self.keep, self.sure,
        ]  # fmt: skip

    @property
    def live_inputs(self) -> list[Any]:
        """How the curve is drawn."""
        return [self.log_scale]

    def live(self, job_id: str, *inputs: Any) -> Updates:
        """The table and the chosen job; the one at work, or the newest, when none is chosen or it is gone."""
        log_scale = bool(inputs and inputs[0])
        jobs = self.studio.jobs()
        job = _pick(jobs, job_id)
        queue = self.studio.board.queue()
        updates: Updates = {
            self.queue: queue_bar(queue, self.t),
            self.table: self._table(jobs, job, queue),
            self.detail: gr.Column(visible=job is not None),
        }
        return updates if job is None else {**updates, **self._detail(job, log_scale)}

    def _table(self, jobs: list[JobView], chosen: JobView | None, queue: QueueView) -> str:
        if not jobs:
            return empty(self.t("home.no_jobs"), self.t("home.no_jobs_text"))
        return job_table(jobs, chosen.id if chosen else "", queue, self.t)

    def _detail(self, job: JobView, log_scale: bool) -> Updates:
        job = self._without_deleted(job)
        return {
            self.progress: figures(job, self.t),
            self.outcome: self._outcome(job),
            self.learning: gr.Row(visible=job.kind == "train"),
            self.curve: self._curve(job, log_scale),
            self.scores: self._scores(job),
            self.checkpoints: checkpoint_table(self.studio.checkpoints(job.id), self.t) if job.kind == "train" else "",
            self.log: log_box(self.studio.log_tail(job.id, max_bytes=_LOG_BYTES), self.t),
            self.config: self._yaml(job),
            self.config_box: gr.Accordion(visible=job.kind == "train"),
            **self._offered(job),
        }

    def _without_deleted(self, job: JobView) -> JobView:
        """The job with those of its results alone that are still in the library."""
        is_there = {name: name not in MADE or self.studio.has(str(value)) for name, value in job.result.items()}
        return replace(job, result={name: value for name, value in job.result.items() if is_there[name]})

    def _outcome(self, job: JobView) -> str:
        remedies = self.studio.board.remedies(job.id)
        untrained = self.studio.untrained_loss(job.id) if job.state == "succeeded" else None
        return failure_box(job, remedies, self.t) or result_box(job, self.t, untrained) or quiet_box(job, self.t)

    def _curve(self, job: JobView, log_scale: bool) -> str:
        if job.kind != "train":
            return ""
        curves = self.studio.metrics(job.id, names=("loss", "eval_loss"))
        steps = 0 if job.counts_rows else job.total_steps
        return loss_plot(curves, self.t, log_y=log_scale, best_step=job.best_step, total_steps=steps)

    def _scores(self, job: JobView) -> str:
        if job.kind != "train":
            return ""
        return score_card(self.studio.scores(job.id), self.studio.metrics(job.id, names=DRAWN), self.t)

    def _yaml(self, job: JobView) -> str:
        if job.kind != "train":
            return ""
        try:
            return self.studio.job_spec_yaml(job.id)
        except StudioError as error:  # settings of an earlier studio; the curve still is worth showing
            return f"# {self.t.sentence(error.what)}\n# {self.t.sentence(error.fix)}"

    def _merges_after(self, job: JobView) -> list[JobView]:
        """The merges that wait for the job, which one click each has asked for."""
        return [merge for merge in self.studio.jobs(states=("queued", "paused")) if merge.after_id == job.id]

    def _offered(self, job: JobView) -> Updates:
        offered = set(ACTIONS.get(job.state, ()))
        if self._merges_after(job):
            offered -= {"chain"}
        if job.kind != "train":
            offered -= TRAINING_ONLY
        if job.state == "succeeded" and job.result.get("adapter_id"):
            offered |= {"compare", "merge"}
        asked = job.state == "running" and job.desired != "run"  # already on its way to a stop
        updates: Updates = {
            button: gr.Button(visible=name in offered, interactive=not asked or name == "cancel")
            for name, button in self.buttons.items()
        }
        return {**updates, self.keep: gr.Button(visible=False), self.sure: gr.Button(visible=False)}

    # -- events

    def wire(self, page: Page) -> None:
        """Connect the table, the buttons and the ways to the next tabs."""
        safe = guarded(self.message, self.t)
        outputs = [self.message, page.job, page.seen, *self.live_outputs]

        def press(event: gr.EventData, log_scale: bool, job_id: str) -> Updates:
            chosen = self._pressed(event.id, event.action, job_id)
            updates = self.live(chosen, log_scale)
            return {page.job: chosen, page.seen: marks_of(updates), **updates}

        for part in (self.queue, self.table, self.outcome):
            self.listen(part.click, safe(press), [self.log_scale, page.job], outputs)
        for name in ("pause", "resume", "stop", "cancel", "chain"):
            self.listen(self.buttons[name].click, safe(self._asker(name, page)), [page.job], outputs)
        self.listen(self.log_scale.input, safe(self._rescale), [page.job, self.log_scale], [self.message, self.curve])
        self._wire_delete(page, outputs)
        self._wire_next(page)

    def _pressed(self, item_id: str, action: str, job_id: str) -> str:
        """Do what a button of the queue, the table or the card asks for; returns the job to show then."""
        board = self.studio.board
        if item_id == QUEUE:
            self._steer_queue(action)
            return job_id
        if action in (UP, DOWN):
            board.move(item_id, -1 if action == UP else 1)
            return job_id
        if action == RESTART:
            return board.restart(item_id).id
        if action.startswith(FIX):
            name = action.removeprefix(FIX)
            key = f"{action}:{item_id}:{self.studio.job(item_id).attempt}"  # a second click makes no second copy
            return board.retry(item_id, name, idempotency_key=key).id
        return item_id

    def _steer_queue(self, action: str) -> None:
        board = self.studio.board
        if action in (FEWER, MORE):
            board.share_devices(board.queue().jobs_per_device + (1 if action == MORE else -1))
        elif action == PAUSE:
            board.pause_queue()
        else:
            board.resume_queue()

    def _merge_after(self, job: JobView) -> None:
        """Queue the merge once: a second click finds the first one's, and so does another page's."""
        if self._merges_after(job):
            return
        name = self.t("models.merged_name", name=job.name)
        asked = sum(merge.after_id == job.id for merge in self.studio.jobs())
        self.studio.board.merge_after(job.id, name=name, idempotency_key=f"chain:{job.id}:{asked}")

    def _asker(self, name: str, page: Page) -> Any:
        def ask(job_id: str) -> Updates:
            job = self._chosen(job_id)
            if name == "chain":
                self._merge_after(job)
            else:
                getattr(self.studio, f"{name}_job")(job.id)
            tell(self.t(f"jobs.{name}_asked"), self.t)
            return {page.job: job.id, page.seen: {}, **self.live(job.id)}

        return ask

    def _wire_delete(self, page: Page, outputs: list[Any]) -> None:
        asking = [self.buttons["delete"], self.keep, self.sure]

        def confirm(on: bool) -> Updates:
            shown = gr.Button(visible=on)
            return {self.buttons["delete"]: gr.Button(visible=not on), self.keep: shown, self.sure: shown}

        def delete(job_id: str) -> Updates:
            self.studio.delete_job(self._chosen(job_id).id)
            return {page.job: "", page.seen: {}, **self.live("")}

        self.listen(self.buttons["delete"].click, lambda: confirm(True), [], asking)
        self.listen(self.keep.click, lambda: confirm(False), [], asking)
        self.listen(self.sure.click, guarded(self.message, self.t)(delete), [page.job], outputs)

    def _wire_next(self, page: Page) -> None:
        compare, models, train = page.each.compare, page.each.models, page.each.train
        safe = guarded(self.message, self.t)

        def open_compare(job_id: str) -> Updates:
            adapter = self.studio.adapter(str(self._chosen(job_id).result["adapter_id"]))
            chosen = compare.choose(adapter.model_id, [adapter.id])
            return {**page.go("compare"), **chosen}

        def open_merge(job_id: str) -> Updates:
            adapter_id = str(self._chosen(job_id).result["adapter_id"])
            return {**page.go("models"), **models.start_merge(adapter_id)}

        def open_copy(job_id: str) -> Updates:
            job = self._chosen(job_id)
            config = from_dict(TrainConfig, job.spec["train"])
            tell_loaded(config, self.t)
            draft = draft_of(config, job.spec["dataset_id"], job.spec["model_id"], job.name)
            return {**page.go("train"), **train.restored(draft)}

        self.listen(
            self.buttons["duplicate"].click, safe(open_copy), [page.job],
            [self.message, *page.go_outputs, *train.restored_outputs],
        )  # fmt: skip
        self.listen(
            self.buttons["compare"].click, safe(open_compare), [page.job],
            [self.message, *page.go_outputs, *compare.choice_outputs],
        )  # fmt: skip
        self.listen(
            self.buttons["merge"].click, safe(open_merge), [page.job],
            [self.message, *page.go_outputs, *models.merge_outputs], trigger_mode="once",
        )  # fmt: skip

    def _rescale(self, job_id: str, log_scale: bool) -> Updates:
        return {self.curve: self._curve(self._chosen(job_id), log_scale)}

    def _chosen(self, job_id: str) -> JobView:
        """The job on screen, by the same rule as in `live`."""
        job = _pick(self.studio.jobs(), job_id)
        return job if job is not None else self.studio.job(job_id)


def _pick(jobs: list[JobView], job_id: str) -> JobView | None:
    running = (job for job in jobs if job.state == "running")
    usual = next(running, jobs[0] if jobs else None)
    return next((job for job in jobs if job.id == job_id), usual)
