"""Home: what to do next in three steps, and the last jobs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.views import JobView, SystemView
from ui.fragments import DELEGATE, Cell, Row, badge, button, callout, empty, esc, heading, table
from ui.handlers import Updates
from ui.page import Page, Tab
from ui.quantities import loss_text, moment_text, share_text

_LOW_DISK_BYTES = 2 * 1024**3
_LAST_JOBS = 5


class HomeTab(Tab):
    """The checklist data -> train -> compare, each step a link to its tab."""

    id = "home"

    def layout(self) -> None:
        """One block of HTML; its buttons reach Python through DELEGATE."""
        self.board = gr.HTML(elem_id="home-board", js_on_load=DELEGATE)

    @property
    def live_outputs(self) -> list[Any]:
        """The board."""
        return [self.board]

    def live(self, job_id: str, *inputs: Any) -> Updates:
        """Everything on this tab."""
        jobs = self.studio.jobs(limit=50)
        parts = (self._welcome(), self._steps(jobs), self._warnings(self.studio.system()), self._last_jobs(jobs))
        return {self.board: f'<div class="home">{"".join(parts)}</div>'}

    def wire(self, page: Page) -> None:
        """A click opens a tab, or a job on the Jobs tab."""

        def clicked(event: gr.EventData) -> Updates:
            if event.action == "job":
                return {**page.go("jobs"), page.job: event.id}
            return page.go(event.id)

        self.listen(self.board.click, clicked, [], [*page.go_outputs, page.job])

    def _welcome(self) -> str:
        return f'<div class="welcome"><h1>{esc(self.t("home.title"))}</h1><p>{esc(self.t("home.text"))}</p></div>'

    def _steps(self, jobs: list[JobView]) -> str:
        datasets, models = self.studio.datasets(), self.studio.models()
        adapters = self.studio.adapters()
        trained = sum(job.kind == "train" and job.state == "succeeded" for job in jobs)
        # A running job counts as a started second step, so the third one is not yet the next.
        steps = [
            ("datasets", bool(datasets), self.t("home.data_count", n=len(datasets))),
            ("train", bool(trained or adapters), self._train_line(bool(datasets and models), len(adapters))),
            ("compare", False, self.t("home.compare_line")),
        ]
        following = next((i for i, (_, done, _) in enumerate(steps) if not done), len(steps) - 1)
        cards = (self._step(i, *step, is_next=i == following) for i, step in enumerate(steps))
        return f'<ol class="steps">{"".join(cards)}</ol>'

    def _train_line(self, ready: bool, adapters: int) -> str:
        if adapters:
            return self.t("home.adapter_count", n=adapters)
        return self.t("home.train_ready") if ready else self.t("home.train_not_ready")

    def _step(self, place: int, tab: str, done: bool, line: str, *, is_next: bool) -> str:
        kind = "step-done" if done else "step-next" if is_next else ""
        symbol = "✓" if done else str(place + 1)
        action = button(self.t(f"home.{tab}_go"), tab, kind="mini-accent" if is_next else "")
        return (
            f'<li class="step {kind}"><i class="step-mark" aria-hidden="true">{symbol}</i><div>'
            f"<h3>{esc(self.t(f'home.{tab}_title'))}</h3><p>{esc(self.t(f'home.{tab}_text'))}</p>"
            f'<p class="step-line">{esc(line)}</p>{action}</div></li>'
        )

    def _warnings(self, system: SystemView) -> str:
        found = []
        if not system.scheduler_running:
            found.append(("home.no_scheduler", "home.no_scheduler_fix"))
        if system.disk_free_bytes < _LOW_DISK_BYTES:
            found.append(("home.low_disk", "home.low_disk_fix"))
        return "".join(callout("warning", self.t(what), self.t(fix), self.t) for what, fix in found)

    def _last_jobs(self, jobs: list[JobView]) -> str:
        title = heading(self.t("home.last_jobs"))
        if not jobs:
            return f'<div class="card">{title}{empty(self.t("home.no_jobs"), self.t("home.no_jobs_text"))}</div>'
        headers = [self.t(f"jobs.{name}") for name in ("name", "state", "progress", "best", "started")]
        rows = (
            Row(
                (
                    Cell(
                        f'<button type="button" class="row-name" data-id="{esc(job.id)}" data-action="job">'
                        f"{esc(job.name)}</button>"
                    ),
                    Cell(badge(job.state, self.t)),
                    Cell.number(share_text(job.progress)),
                    Cell.number(loss_text(job.best_eval_loss)),
                    Cell.number(moment_text(job.started_at)),
                )
            )
            for job in jobs[:_LAST_JOBS]
        )
        return f'<div class="card">{title}{table(headers, rows, self.t("home.last_jobs"))}</div>'
