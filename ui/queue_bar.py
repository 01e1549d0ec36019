"""The queue in sight: how much waits, whether it moves on, its order, and the buttons that change that."""

from __future__ import annotations

from collections.abc import Sequence

from studio.views import JobView, QueueView
from ui.fragments import button, esc
from ui.i18n import Translator

QUEUE = "queue"  # what stands where a button of a job has the job's id
PAUSE, RESUME, FEWER, MORE, UP, DOWN = "pause-queue", "resume-queue", "fewer", "more", "up", "down"
_STATES = ("running", "queued", "paused")  # on top, in this order; what is over follows, the newest first


def in_order(jobs: Sequence[JobView], queue: QueueView) -> list[JobView]:
    """The jobs as the table shows them: what runs, what waits in its order, what is paused, then what is over."""
    places = {job_id: place for place, job_id in enumerate(queue.order)}
    rank = {state: number for number, state in enumerate(_STATES)}
    return sorted(jobs, key=lambda job: (rank.get(job.state, len(rank)), places.get(job.id, 0)))


def queue_bar(queue: QueueView, t: Translator) -> str:
    """One line above the table: what waits, and pause, resume and pace of the queue."""
    waiting = len(queue.order)
    words = t("queue.paused", count=waiting) if queue.is_paused else t("queue.moving", count=waiting)
    action, label = (RESUME, t("queue.resume")) if queue.is_paused else (PAUSE, t("queue.pause"))
    pace = t("queue.per_device", count=queue.jobs_per_device)
    fewer = button("−", QUEUE, FEWER, label=t("queue.fewer"))
    more = button("+", QUEUE, MORE, label=t("queue.more"))
    kind = " queue-paused" if queue.is_paused else ""
    return (
        f'<div class="queue-bar{kind}"><span role="status">{esc(words)}</span>{button(label, QUEUE, action)}'
        f'<span class="queue-pace">{esc(pace)}{fewer}{more}</span></div>'
    )


def place_cell(job: JobView, queue: QueueView, t: Translator) -> str:
    """The place of a waiting job and the arrows that change it; nothing for the others."""
    if job.id not in queue.order:
        return ""
    place, last = queue.order.index(job.id), len(queue.order) - 1
    up = button("↑", job.id, UP, label=t("queue.up")) if place else ""
    down = button("↓", job.id, DOWN, label=t("queue.down")) if place < last else ""
    return f'<span class="place">{place + 1}</span>{up}{down}'
