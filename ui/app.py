"""The page: tabs around one `Studio`, built once per language, and the web app that serves them."""

from __future__ import annotations

import gradio as gr
from fastapi import FastAPI

from studio.service import Studio
from ui import strip, theme
from ui.fragments import esc
from ui.handlers import QUIET
from ui.head import PATHS, PageHead
from ui.i18n import LANGUAGES, LOCALES, Translator
from ui.page import FIRST_KEY, TAB_IDS, Page, Tabs
from ui.tabs.compare import CompareTab
from ui.tabs.datasets import DatasetsTab
from ui.tabs.home import HomeTab
from ui.tabs.jobs import JobsTab
from ui.tabs.models import ModelsTab
from ui.tabs.system import SystemTab
from ui.tabs.train import UNFILLED, TrainTab

# A form that is still to be filled is not to be renewed: its own answer would come later, and go by what is there now.
UNLESS_EMPTY = f"(...chosen) => window.loraStudioRestored ? chosen : chosen.map(() => '{UNFILLED}')"
TITLE = "LoRA Studio"
MAX_UPLOAD = "500mb"
SESSIONS = 32  # pages whose state is kept, 0.6 MB each; Gradio keeps 10,000, and every reload is a new one


def build(studio: Studio, language: str = "en") -> gr.Blocks:
    """The page in one language. Nothing is read from the studio until a browser opens it."""
    t = Translator(language)
    # delete_cache: uploads are copied into the workspace at once, so their first copies go after a day.
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 86_400)) as demo:
        tabs = Tabs(
            HomeTab(studio, t), DatasetsTab(studio, t), TrainTab(studio, t), JobsTab(studio, t),
            CompareTab(studio, t), ModelsTab(studio, t), SystemTab(studio, t),
        )  # fmt: skip
        page = Page(studio, t, tabs)
        gr.HTML(_header(t), elem_id="header")
        page.strip = gr.HTML(elem_id="strip")
        handles: dict[str, gr.Tab] = {}
        with gr.Tabs(elem_id="tabs") as page.tabs:
            for tab_id in TAB_IDS:
                with gr.Tab(t(f"tab.{tab_id}"), id=tab_id, elem_id=f"tab-{tab_id}") as handles[tab_id]:
                    tabs.by_id[tab_id].layout()
        _wire(demo, page, handles)
    demo.has_launched = True  # Gradio looks at the paths in a request only where it believes to have launched the page
    demo.state_session_capacity = SESSIONS  # the pages in use are the youngest; an older one is filled anew
    made: gr.Blocks = demo
    return made


def _wire(demo: gr.Blocks, page: Page, handles: dict[str, gr.Tab]) -> None:
    page.wire(lambda: strip.render(page.studio, page.t))
    for tab_id, tab in page.each.by_id.items():
        tab.wire(page)
        page.when_selected(tab_id, handles[tab_id])
    opened = page.load(demo)
    datasets, train, compare = page.each.datasets, page.each.train, page.each.compare
    # What no timer keeps live is filled once the open tab has been, and whenever its own tab is opened.
    restored = opened.then(train.restored, [train.draft], train.restored_outputs, **QUIET)
    restored.then(None, js="() => { window.loraStudioRestored = true; }", **QUIET)
    outputs = [datasets.seen, *datasets.view_outputs]
    chosen = [datasets.seen, datasets.chosen, datasets.start]
    opened.then(datasets.opened, [page.tab, *chosen], outputs, **QUIET)
    handles["datasets"].select(datasets.renewed, chosen, outputs, **QUIET)
    for event in (opened.then, handles["compare"].select):
        event(compare.shown, [compare.transcript], [*compare.choice_outputs, compare.prompt], **QUIET)
    for tab in (train, page.each.models):
        demo.load(None, None, [tab.key], js=FIRST_KEY, **QUIET)
    choices = [train.dataset, train.model]
    handles["train"].select(train.renewed, choices, choices, js=UNLESS_EMPTY, **QUIET)


def _header(t: Translator) -> str:
    shade = esc(t("app.theme"))
    here = {t.language: ' aria-current="true"'}
    links = "".join(
        f'<a href="{PATHS[code]}" lang="{LOCALES[code]}" data-language="{code}"{here.get(code, "")}>{name}</a>'
        for code, name in LANGUAGES.items()
    )
    return (
        f'<header class="top"><div class="brand">{theme.logo()}<div><b>{TITLE}</b>'
        f"<span>{esc(t('app.claim'))}</span></div></div>"
        f'<nav class="switches" aria-label="{esc(t("app.language"))}"><span class="languages">{links}</span>'
        f'<button type="button" id="theme-switch" aria-label="{shade}" title="{shade}">◐</button></nav></header>'
    )


def create_app(studio: Studio, app: FastAPI | None = None) -> FastAPI:
    """Mount the page in every language: English at `/`, the others at `/<language>/`.

    Give `app` when routes and middleware of the caller (downloads, the guard) are to stand before the page.
    """
    app = app or FastAPI(title=TITLE, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(PageHead)
    for language in sorted(LANGUAGES, key=lambda code: code == "en"):  # "/" takes every path, so it comes last
        page = build(studio, language).queue(default_concurrency_limit=None, api_open=False)
        gr.mount_gradio_app(
            app,
            page,
            path="/" if language == "en" else f"/{language}",
            theme=theme.theme(),
            css=theme.style(),
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            show_error=False,
            max_file_size=MAX_UPLOAD,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
        )
        # A heartbeat holds a connection for every open page. A browser has six for a server: the sixth page never came.
        page.config["connect_heartbeat"] = False
    return app
