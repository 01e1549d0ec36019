"""The parts of a job's card: figures, failure, result, checkpoints, log, and the table of all jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from studio.views import CheckpointView, JobView, QueueView, RemedyView
from ui.fragments import Cell, Row, badge, button, callout, download, esc, heading, progress, readings, table
from ui.i18n import Translator
from ui.quantities import NOTHING, bytes_text, duration_text, loss_text, moment_text, share_text, speed_text
from ui.queue_bar import in_order, place_cell

# What a verification tells, in the order of interest, and how each value is written.
_VERIFIED: Mapping[str, Callable[[Any], str]] = {
    "top1_agreement": lambda share: share_text(share, 1),
    "unrounded_difference": lambda value: f"{value:.2g}",
    "max_logit_difference": lambda value: f"{value:.2g}",
    "kl_divergence": lambda value: f"{value:.2g}",
    "tokens": str,
    "dtype": str,
    "adapter_sha256": lambda digest: str(digest)[:12],
}
_COLUMNS = ("name", "kind", "state", "place", "progress", "loss", "best", "speed", "started")
MADE = ("adapter_id", "model_id")  # what a result names that can be deleted by itself
FIX, RESTART = "fix:", "restart"  # actions of the buttons in a job's card
_QUIET_S, _QUIET_STEPS, _QUIET_ELSE_S = 120.0, 20.0, 1800.0  # without progress for longer than this, the card says so


def job_table(jobs: Sequence[JobView], chosen: str, queue: QueueView, t: Translator) -> str:
    """All jobs in the order of the queue; a click chooses one, the arrows move one that waits."""
    rows = (Row(_cells(job, queue, t), job.id, job.id == chosen) for job in in_order(jobs, queue))
    return table([t(f"jobs.{name}") for name in _COLUMNS], rows, t("jobs.title"))


def _cells(job: JobView, queue: QueueView, t: Translator) -> list[Cell | str]:
    bar = f'<div class="tiny"><div style="width:{100 * min(1.0, job.progress):.1f}%"></div></div>'
    return [
        job.name,
        kind_text(job, t),
        Cell(badge(job.state, t)),
        Cell(place_cell(job, queue, t)),
        Cell(f"{bar}<span>{share_text(job.progress)}</span>", numeric=True),
        Cell.number(loss_text(job.loss)),
        Cell.number(loss_text(job.best_eval_loss)),
        Cell.number(speed_text(job.tokens_per_second)),
        Cell.number(moment_text(job.started_at)),
    ]


def kind_text(job: JobView, t: Translator) -> str:
    """What a job does, in a word or two; its name says with what."""
    return t.known(f"kind.{job.kind}", job.kind)


def figures(job: JobView, t: Translator) -> str:
    """The head of the card: name, state, progress bar and readings."""
    values = {
        t("jobs.rows_prepared" if job.counts_rows else "jobs.step"): f"{job.step:,} / {job.total_steps:,}"
        if job.total_steps
        else NOTHING,
        t("jobs.eta"): NOTHING if job.is_over else duration_text(job.eta_s, t),
        t("jobs.elapsed"): duration_text(_elapsed(job), t),
    }
    if job.kind == "train":
        values |= {
            t("jobs.loss"): loss_text(job.loss),
            t("jobs.eval_loss"): loss_text(job.eval_loss),
            t("jobs.best"): loss_text(job.best_eval_loss),
            t("jobs.speed"): speed_text(job.tokens_per_second),
        }
    now = t(f"desired.{job.desired}") if job.state == "running" and job.desired != "run" else t.sentence(job.message)
    now = "" if job.is_over else now  # the state says it already
    under = f'<p class="caption" aria-live="polite">{esc(now)}</p>' if now else ""
    names = f"<h2>{esc(job.name)}</h2><span>{esc(kind_text(job, t))}</span>"
    title = f'<div class="job-head">{names}{badge(job.state, t)}<code>{esc(job.id)}</code></div>'
    return title + progress(job.progress, t("jobs.progress"), "job-progress-bar") + under + readings(values)


def _elapsed(job: JobView) -> float | None:
    """From the start to the end; of a job that rests, to where its work last went on."""
    end = job.finished_at or (time.time() if job.state == "running" else job.progress_at)
    return None if job.started_at is None or end is None else max(0.0, end - job.started_at)


def failure_box(job: JobView, remedies: Sequence[RemedyView], t: Translator) -> str:
    """Why a job failed, the line that shows it, and a button for everything that may help; nothing for the others."""
    if job.state != "failed":
        return ""
    what = t.sentence(job.error_what) or t("jobs.failed")
    box = callout("error", what, t.sentence(job.error_fix) or t("jobs.failed_fix"), t)
    evidence = str(job.failure.get("evidence", ""))
    shown = f'<p class="evidence"><span>{esc(t("jobs.evidence"))}</span><code>{esc(evidence)}</code></p>'
    offers = "".join(_offer(job, remedy, place == 0, t) for place, remedy in enumerate(remedies))
    return box + (shown if evidence else "") + (f'<ul class="remedies">{offers}</ul>' if offers else "")


def _offer(job: JobView, remedy: RemedyView, is_first: bool, t: Translator) -> str:
    text = t("jobs.fix_copy") if remedy.changes else t("jobs.fix_again")
    press = button(text, job.id, f"{FIX}{remedy.name}", "mini-accent" if is_first else "")
    return f"<li>{press}<span>{esc(t.sentence(remedy.text))}</span></li>"


def quiet_box(job: JobView, t: Translator) -> str:
    """A word on a running job whose work has not gone on for far longer than its steps take."""
    if job.idle_s is None or job.desired != "run" or job.idle_s < _patience(job):
        return ""
    box = callout("warning", t("jobs.quiet", time=duration_text(job.idle_s, t)), t("jobs.quiet_fix"), t)
    return box + f'<p class="links">{button(t("jobs.restart"), job.id, RESTART)}</p>'


def _patience(job: JobView) -> float:
    left = job.total_steps - job.step
    return max(_QUIET_S, _QUIET_STEPS * job.eta_s / left) if job.eta_s and left > 0 else _QUIET_ELSE_S


def result_box(job: JobView, t: Translator, untrained_loss: float | None = None) -> str:
    """What a finished job made, with its download; of a run also whether it was better before its first step."""
    if job.state != "succeeded":
        return ""
    if job.kind in ("train", "merge") and not any(job.result.get(name) for name in MADE):
        return callout("info", t("jobs.deleted"), "", t)
    if job.kind == "train":
        link = download(t("jobs.download_adapter"), "adapter", str(job.result["adapter_id"]))
        return _trained_box(job, t, untrained_loss) + f'<p class="links">{link}</p>'
    if job.kind == "merge":
        link = download(t("models.download"), "model", str(job.result["model_id"]))
        checked = verification(job.result.get("verification") or {}, t)
        return callout("ok", t("jobs.done_merge"), "", t) + checked + f'<p class="links">{link}</p>'
    done = {"add_model": "jobs.done_model", "add_dataset": "jobs.done_dataset"}.get(job.kind)
    return callout("ok", t(done), "", t) if done else ""


def _trained_box(job: JobView, t: Translator, untrained_loss: float | None) -> str:
    if job.best_eval_loss is None or untrained_loss is None or job.best_eval_loss <= untrained_loss:
        return callout("ok", t("jobs.done_train"), t("jobs.done_train_next"), t)
    worse = t("jobs.done_worse", before=loss_text(untrained_loss), after=loss_text(job.best_eval_loss))
    return callout("warning", worse, t("jobs.done_worse_next"), t)


def verification(values: Mapping[str, Any], t: Translator) -> str:
    """How the merged model was checked against base + adapter, as readings with a word on how to take them."""
    named = {t(f"verify.{name}"): show(values[name]) for name, show in _VERIFIED.items() if name in values}
    return f'{readings(named)}<p class="caption">{esc(t("verify.note"))}</p>' if named else ""


def checkpoint_table(checkpoints: Sequence[CheckpointView], t: Translator) -> str:
    """The saved states that are kept, the best one marked."""
    if not checkpoints:
        return heading(t("jobs.checkpoints"), t("jobs.no_checkpoints"))
    headers = [t(f"checkpoint.{name}") for name in ("step", "loss", "size", "mark")]
    rows = (
        Row((
            Cell(esc(f"{point.step:,}")), Cell.number(loss_text(point.eval_loss)),
            Cell.number(bytes_text(point.size_bytes)), Cell(_mark(point, t)),
        ))
        for point in checkpoints
    )  # fmt: skip
    return heading(t("jobs.checkpoints")) + table(headers, rows, t("jobs.checkpoints"))


def _mark(point: CheckpointView, t: Translator) -> str:
    words = [("★ " + t("checkpoint.best"), point.is_best), (t("checkpoint.last"), point.is_last)]
    return " ".join(f'<span class="badge">{esc(word)}</span>' for word, on in words if on)


def log_box(text: str, t: Translator) -> str:
    """The end of the worker's log, every character as it stands."""
    return f'<pre class="log" tabindex="0">{esc(text) if text.strip() else esc(t("jobs.no_log"))}</pre>'
