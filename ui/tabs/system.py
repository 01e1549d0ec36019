"""System: this machine, this workspace, and what runs in the background."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.views import SystemView
from ui.fragments import Cell, Row, badge_level, esc, heading, progress, table
from ui.handlers import Updates, guarded, tell
from ui.page import Page, Tab
from ui.quantities import NOTHING, bytes_text, share_text


class SystemTab(Tab):
    """Devices, disk, versions and processes; read only, but for freeing the chat's memory."""

    id = "system"

    def layout(self) -> None:
        """Cards of facts."""
        with gr.Column(elem_classes="card"):
            gr.HTML(heading(self.t("system.devices"), self.t("system.devices_text")))
            self.devices = gr.HTML(elem_id="system-devices")
            with gr.Row(elem_classes="buttons"):
                self.free = gr.Button(self.t("system.free_chat"), size="sm", elem_id="system-free-chat")
            self.message = gr.HTML(elem_id="system-message")
        with gr.Row(elem_classes="split"):
            with gr.Column(min_width=320, elem_classes="card"):
                gr.HTML(heading(self.t("system.workspace"), self.t("system.workspace_text")))
                self.disk = gr.HTML(elem_id="system-disk")
            with gr.Column(min_width=320, elem_classes="card"):
                gr.HTML(heading(self.t("system.state")))
                self.state = gr.HTML(elem_id="system-state")

    @property
    def live_outputs(self) -> list[Any]:
        """All cards."""
        return [self.devices, self.disk, self.state]

    def live(self, job_id: str, *inputs: Any) -> Updates:
        """All cards from one look at the machine."""
        system = self.studio.system()
        return {self.devices: self._devices(system), self.disk: self._disk(system), self.state: self._state(system)}

    def wire(self, page: Page) -> None:
        """One button."""
        self.listen(self.free.click, guarded(self.message, self.t)(self._free_chat), [], [self.message])

    def _free_chat(self) -> Updates:
        self.studio.stop_chat()
        tell(self.t("system.chat_freed"), self.t)
        return {}

    def _devices(self, system: SystemView) -> str:
        headers = [self.t(f"system.{name}") for name in ("device", "memory", "used", "busy")]
        rows = (
            Row((
                self.t.sentence(device.name),
                Cell.number(f"{bytes_text(device.memory_used_bytes)} / {bytes_text(device.memory_total_bytes)}"),
                Cell(progress(device.memory_used_bytes / max(1, device.memory_total_bytes), self.t("strip.memory"))),
                Cell.number(NOTHING if device.busy_share is None else share_text(device.busy_share)),
            ))
            for device in system.devices
        )  # fmt: skip
        return table(headers, rows, self.t("system.devices"))

    def _disk(self, system: SystemView) -> str:
        largest = max(system.disk_used.values(), default=0) or 1
        rows = (
            Row((
                self.t.known(f"folder.{folder}", folder),
                Cell(f'<div class="tiny wide"><div style="width:{100 * size / largest:.1f}%"></div></div>'),
                Cell.number(bytes_text(size)),
            ))
            for folder, size in system.disk_used.items()
        )  # fmt: skip
        headers = [self.t("system.folder"), self.t("system.share"), self.t("system.size")]
        path = f'<p class="caption"><code>{esc(system.workspace)}</code></p>'
        free = f'<p class="caption">{esc(self.t("system.disk_free", size=bytes_text(system.disk_free_bytes)))}</p>'
        return path + table(headers, rows, self.t("system.workspace")) + free

    def _state(self, system: SystemView) -> str:
        scheduler = "ok" if system.scheduler_running else "warning"
        words = self.t("system.scheduler_on" if system.scheduler_running else "system.scheduler_off")
        network = self.t("system.offline" if system.offline else "system.online")
        facts: list[Row] = [
            Row((self.t("system.scheduler"), Cell(badge_level(scheduler, words, self.t)))),
            Row((self.t("system.network"), Cell.words(network))),
            Row((self.t("system.running"), Cell.number(len(system.running)))),
            Row((self.t("system.queued"), Cell.number(system.queued))),
        ]
        facts += [Row((name, Cell(f"<code>{esc(version)}</code>"))) for name, version in system.versions.items()]
        return table([self.t("system.what"), self.t("system.value")], facts, self.t("system.state"))
