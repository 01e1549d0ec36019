"""What the tabs share: the page around them, moving between them, and the one timer that keeps them live."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import gradio as gr

from studio.service import Studio
from ui.handlers import DIRECT, QUIET, Updates, only_changed
from ui.i18n import Translator

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ui.tabs.compare import CompareTab
    from ui.tabs.datasets import DatasetsTab
    from ui.tabs.home import HomeTab
    from ui.tabs.jobs import JobsTab
    from ui.tabs.models import ModelsTab
    from ui.tabs.system import SystemTab
    from ui.tabs.train import TrainTab

log = logging.getLogger(__name__)

TAB_IDS = ("home", "datasets", "train", "jobs", "compare", "models", "system")
# The values are no secret (which tab and job were looked at last); Gradio wants a fixed one to read them back
# after a restart of the server.
_BROWSER_SECRET = "lora-studio"
BUSY_S, IDLE_S = 2, 6
# `?tab=` opens a tab once; a later reload shows the tab that is open then. Who was quick has turned to another by now.
_LOADED = """async (shown) => {
  window.loraStudioOpened = true;
  window.loraStudioSays();
  const here = new URL(location.href);
  here.searchParams.delete('tab');
  history.replaceState(history.state, '', here);
  for (let drawn = 0; drawn < 2; drawn++) await new Promise(requestAnimationFrame);
  const open = document.querySelector('#tabs button[role=tab][aria-selected=true]')?.id.replace(/^tab-|-button$/g, '');
  return open && open !== shown ? window.loraStudioOpens(open) : '';
}"""


# A page makes its first key by itself; a browser offers randomUUID only where the address is this machine's.
FIRST_KEY = "() => [...crypto.getRandomValues(new Uint8Array(16))].map((n) => n.toString(16).padStart(2, '0')).join('')"


def remembered(default: Any, key: str) -> gr.BrowserState:
    """A value that this browser keeps through a reload and a restart of the server; only conveniences live here."""
    return gr.BrowserState(default, storage_key=f"lora-studio-{key}", secret=_BROWSER_SECRET)


def new_key() -> str:
    """A key that makes a repeated request for the same job harmless."""
    return uuid.uuid4().hex


def request_key(elem_id: str) -> gr.Textbox:
    """A hidden field with the key of the next request.

    It lives in the browser, not in gr.State: a second click sends the key that stood there at its own moment.
    """
    return gr.Textbox("", visible="hidden", elem_id=elem_id, label="key", interactive=False)


C = TypeVar("C", gr.Dropdown, gr.CheckboxGroup)


def unchecked(component: C) -> C:
    """Let any choice through to the service, which knows what exists.

    Gradio would compare it with the choices that this process has sent so far: none after a restart of the server,
    while the open page still shows, and sends, a good one.
    """
    component.preprocess = lambda payload: payload  # type: ignore[method-assign]
    return component


Choice = tuple[str, str]  # name and id


def known_or_first(wanted: str | None, choices: Sequence[Choice]) -> str | None:
    """The wanted id if it can still be chosen, else the first one."""
    known = [item for _, item in choices]
    return wanted if wanted in known else known[0] if known else None


class Tab:
    """One screen. `layout` makes the components, `wire` their events, `shown` and `live` fill them from the studio."""

    id = ""

    def __init__(self, studio: Studio, t: Translator) -> None:
        self.studio = studio
        self.t = t

    def layout(self) -> None:
        """Make the components, inside the tab's context."""
        raise NotImplementedError

    def wire(self, page: Page) -> None:
        """Connect the events; every tab's components exist by now."""

    def live(self, job_id: str, *inputs: Any) -> Updates:
        """What a tick of the timer renews while this tab is open; `inputs` are the values of `live_inputs`."""
        return {}

    @property
    def live_inputs(self) -> list[Any]:
        """The components whose values `live` needs beside the chosen job."""
        return []

    @property
    def live_outputs(self) -> list[Any]:
        """The components that `live` may update."""
        return []

    def listen(self, event: Any, handler: Any, inputs: Any, outputs: Iterable[Any], **options: Any) -> Any:
        """Register a quiet, private handler without a concurrency limit."""
        return event(handler, inputs=inputs, outputs=list(outputs), **{**QUIET, **options})


@dataclass(frozen=True)
class Tabs:
    """The seven tabs, by name."""

    home: HomeTab
    datasets: DatasetsTab
    train: TrainTab
    jobs: JobsTab
    compare: CompareTab
    models: ModelsTab
    system: SystemTab

    @property
    def by_id(self) -> dict[str, Tab]:
        """The tabs in their order on the page."""
        return {tab_id: getattr(self, tab_id) for tab_id in TAB_IDS}


class Page:
    """The tabs, what the browser remembers, and the timer."""

    def __init__(self, studio: Studio, t: Translator, tabs: Tabs) -> None:
        self.studio = studio
        self.t = t
        self.each = tabs
        self.tab = remembered("home", "tab")
        # The tab that was turned to, and a number; hidden like a request's key.
        self.turned = gr.Textbox("", visible="hidden", elem_id="turned", label="tab", interactive=False)
        self.job = remembered("", "job")
        self.seen = gr.State({})  # marks of what this page shows; losing them costs one full rendering
        self.timer = gr.Timer(IDLE_S)
        self.tabs: gr.Tabs
        self.strip: gr.HTML

    def go(self, tab_id: str) -> Updates:
        """The updates that open another tab."""
        return {self.tabs: gr.Tabs(selected=tab_id), self.tab: tab_id}

    @property
    def go_outputs(self) -> list[Any]:
        """The components that `go` updates."""
        return [self.tabs, self.tab]

    def wire(self, render_strip: Any) -> None:
        """Connect the timer, the tabs and the first load."""
        self._render_strip = render_strip
        self._outputs = [self.strip, self.timer, self.seen]
        self._extra: list[Any] = []
        self._slices: dict[str, slice] = {}
        for tab_id, tab in self.each.by_id.items():
            self._slices[tab_id] = slice(len(self._extra), len(self._extra) + len(tab.live_inputs))
            self._extra.extend(tab.live_inputs)
            self._outputs.extend(tab.live_outputs)
        self.timer.tick(self._tick, self._inputs, self._outputs, **DIRECT)
        self.turned.change(self._turn, [self.turned, *self._inputs[1:]], [self.tab, *self._outputs], **DIRECT)

    @property
    def _inputs(self) -> list[Any]:
        return [self.tab, self.job, self.seen, *self._extra]

    def _tick(self, tab_id: str, job_id: str, seen: dict[str, str], *extra: Any) -> Any:
        """Renew the strip and the open tab; a fault is logged and the next tick tries again."""
        try:
            strip, busy = self._render_strip()
            updates: Updates = {self.strip: strip, self.timer: gr.Timer(BUSY_S if busy else IDLE_S)}
            if tab_id in self.each.by_id:
                updates.update(self.each.by_id[tab_id].live(job_id or "", *extra[self._slices[tab_id]]))
        except Exception:
            log.exception("a tick of the page failed")
            return gr.skip()
        return only_changed(updates, self.seen, seen or {})

    def load(self, demo: gr.Blocks) -> Any:
        """Show the tab of the address or the last visit when the page opens; returns the event, for what may wait."""

        def opened(request: gr.Request, last: str, job_id: str, seen: dict[str, str], *extra: Any) -> Any:
            asked = str(request.query_params.get("tab", "")) if request else ""
            chosen = asked if asked in TAB_IDS else last if last in TAB_IDS else "home"
            moves = self.go(chosen) if chosen != "home" else {}  # it is open; who is quick may have left it by now
            return {**moves, **_as_updates(self._tick(chosen, job_id, seen, *extra))} or gr.skip()

        # One answer for all of it: what runs is in sight before the forms of the other tabs are filled.
        first = demo.load(opened, self._inputs, [*self.go_outputs, *self._outputs], **DIRECT)
        first.then(None, [self.tab], [self.turned], js=_LOADED, **QUIET)
        return first

    def when_selected(self, tab_id: str, tab: gr.Tab) -> None:
        """Remember the tab and show it fresh the moment it is opened.

        A page that is still loading selects a tab by itself, which `load` shows.
        """
        script = f"() => window.loraStudioOpened ? window.loraStudioOpens('{tab_id}') : ''"
        tab.select(None, None, [self.turned], js=script, **QUIET)

    def _turn(self, turned: str, job_id: str, seen: dict[str, str], *extra: Any) -> Any:
        chosen = (turned or "").partition(" ")[0]
        if chosen not in TAB_IDS:
            return gr.skip()
        return {self.tab: chosen, **_as_updates(self._tick(chosen, job_id, seen, *extra))}


def _as_updates(answer: Any) -> Updates:
    """A tick's answer as a dict; a skip, which is a gr.update without a component, becomes an empty one."""
    return answer if isinstance(answer, dict) and "__type__" not in answer else {}
