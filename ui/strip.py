"""The strip above all tabs: memory of the device, the running job, the queue and the disk."""

from __future__ import annotations

from studio.service import Studio
from studio.views import DeviceView, JobView, SystemView
from ui.fragments import esc, progress
from ui.i18n import Translator
from ui.job_card import kind_text
from ui.quantities import bytes_text, duration_text


def render(studio: Studio, t: Translator) -> tuple[str, bool]:
    """The strip's HTML, and whether something runs or waits (then the page looks more often)."""
    system = studio.system()
    cells = [
        *(_device(device, t) for device in system.devices[:1]),
        _job(system, t),
        _queue(system, t),
        _disk(system, t),
    ]
    return f'<div class="strip">{"".join(cells)}</div>', bool(system.running or system.queued)


def _cell(name: str, value: str, detail: str = "", extra: str = "") -> str:
    under = f"<small>{esc(detail)}</small>" if detail else ""
    return f'<div class="strip-cell"><span class="strip-name">{esc(name)}</span><b>{esc(value)}</b>{under}{extra}</div>'


def _device(device: DeviceView, t: Translator) -> str:
    share = device.memory_used_bytes / device.memory_total_bytes if device.memory_total_bytes else 0.0
    figures = t("strip.used_of", used=bytes_text(device.memory_used_bytes), total=bytes_text(device.memory_total_bytes))
    return _cell(t("strip.memory"), figures, t.sentence(device.name), progress(share, t("strip.memory")))


def _job(system: SystemView, t: Translator) -> str:
    if not system.running:
        return _cell(t("strip.running"), t("strip.idle"), t("strip.idle_detail"))
    job: JobView = system.running[0]
    left = t("strip.left", time=duration_text(job.eta_s, t)) if job.eta_s is not None else t.sentence(job.message)
    return _cell(t("strip.running"), f"{kind_text(job, t)} · {job.name}", left, progress(job.progress, job.name))


def _queue(system: SystemView, t: Translator) -> str:
    return _cell(t("strip.queue"), str(system.queued), t("strip.waiting"))


def _disk(system: SystemView, t: Translator) -> str:
    return _cell(t("strip.disk"), bytes_text(system.disk_free_bytes), t("strip.free"))
