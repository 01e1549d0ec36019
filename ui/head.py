"""What must stand in the page before Gradio starts: its language, its icon, light or dark, and the tab that is open.

Gradio adds the `head` it is given only once it runs, which is too late: by then it has chosen the language of its own
words ("Drop file here") from the browser, and a dark page has flashed white. So the script goes into the HTML itself.
"""

from __future__ import annotations

import base64
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.i18n import LANGUAGES, LOCALES, of_gradio
from ui.theme import logo

PATHS = {code: "/" if code == "en" else f"/{code}/" for code in LANGUAGES}


def head(language: str) -> str:
    """Icon and script of a page in `language`.

    A first visit to `/` with a browser in another of our languages goes to that language, until one is chosen.
    """
    icon = base64.b64encode(logo().encode()).decode()
    script = _SCRIPT.replace("LANGUAGE", json.dumps(language)).replace("LOCALE", json.dumps(LOCALES[language]))
    script = script.replace("PATHS", json.dumps(PATHS)).replace("SAYINGS", json.dumps(of_gradio(language)))
    return f'<link rel="icon" type="image/svg+xml" href="data:image/svg+xml;base64,{icon}"><script>{script}</script>'


class PageHead:
    """Puts `head` into the HTML of the pages, and only there."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.heads = {path: (LOCALES[code], head(code)) for code, path in PATHS.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, but collect and complete a page."""
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] not in self.heads:
            await self.app(scope, receive, send)
            return
        # Compressed HTML could not be completed; a page is small enough to go as it is.
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        await self.app({**scope, "headers": plain}, receive, _Completed(send, *self.heads[scope["path"]]))


class _Completed:
    """A `send` that holds an HTML answer until it is whole, then sends it with the head inside."""

    def __init__(self, send: Send, locale: str, addition: str) -> None:
        self.send, self.locale, self.addition = send, locale, addition
        self.start: Message | None = None
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_html(message):
            self.start = message
        elif self.start is None:
            await self.send(message)
        else:
            self.body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._finish(self.start)

    async def _finish(self, start: Message) -> None:
        body = self.body.replace(b'lang="en"', f'lang="{self.locale}"'.encode(), 1)
        body = body.replace(b"<head>", b"<head>" + self.addition.encode(), 1)
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self.send({**start, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _is_html(message: Message) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in message["headers"])


_SCRIPT = r"""
(() => {
  const page = LANGUAGE, locale = LOCALE, paths = PATHS;
  const store = (key, value) => { try { localStorage.setItem(key, value); } catch { /* private window */ } };
  const stored = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
  const wanted = stored('lora-studio-language') || (navigator.language || 'en').slice(0, 2);
  if (location.pathname === '/' && page !== wanted && paths[wanted] && !location.search.includes('lang=')) {
    location.replace(paths[wanted] + location.search);
    return;
  }
  const tab = new URLSearchParams(location.search).get('tab') || stored('lora-studio-open');
  // Gradio asks for every event of every component, through proxies that Svelte makes of arrays, but not of this class.
  class Plain extends Array {}
  const opened = (config) => {  // Gradio draws the tab that it opens with first, and would change to another one after
    const isThere = config.components.some((part) => part.type === 'tabitem' && part.props.id === tab);
    const tabs = config.components.find((part) => part.props.elem_id === 'tabs');
    if (isThere && tabs) tabs.props.selected = tab;
    config.dependencies = Plain.from(config.dependencies);
    return config;
  };
  let config;
  const take = (given) => { config = opened(given); };
  Object.defineProperty(window, 'gradio_config', {get: () => config, set: take, configurable: true});
  let turns = 0;  // of the same tab again, too, the page must be told
  window.loraStudioOpens = (opens) => { store('lora-studio-open', opens); return `${opens} ${++turns}`; };
  const literal = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  const sayings = Object.entries(SAYINGS).map(
    ([said, text]) => [new RegExp(`^${said.trim().split('{}').map(literal).join('(.+?)')}$`, 's'), text]);
  window.loraStudioSays = () => {  // its toasts are English in every language
    const toasts = document.querySelector('.toast-wrap');
    if (!toasts || !sayings.length) return;
    const say = () => toasts.querySelectorAll('.toast-title, .toast-message-text').forEach((part) => {
      const word = [...part.childNodes].find((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
      for (const [said, text] of word ? sayings : []) {
        const [found, ...values] = said.exec(word.data.trim()) || [];
        if (found) return void (word.data = text.replace(/{}/g, () => values.shift()));
      }
    });
    new MutationObserver(say).observe(toasts, {childList: true, subtree: true, characterData: true});
  };
  Object.defineProperty(navigator, 'language', {get: () => locale, configurable: true});
  Object.defineProperty(navigator, 'languages', {get: () => [locale], configurable: true});
  const asked = new URLSearchParams(location.search).get('__theme');
  const shade = asked || stored('lora-studio-theme');
  const paint = (dark) => document.body && document.body.classList.toggle('dark', dark);
  if (shade === 'dark' || shade === 'light') {
    const settle = () => paint(shade === 'dark');
    document.addEventListener('DOMContentLoaded', settle);
    for (const wait of [50, 300, 1000]) setTimeout(settle, wait);  // Gradio sets its own once it starts
  }
  document.addEventListener('click', (event) => {
    const language = event.target.closest && event.target.closest('[data-language]');
    if (language) store('lora-studio-language', language.dataset.language);
    if (event.target.closest && event.target.closest('#theme-switch')) {
      const dark = !document.body.classList.contains('dark');
      paint(dark);
      store('lora-studio-theme', dark ? 'dark' : 'light');
    }
  });
})();
"""
