"""What of Gradio answers: the routes that the page uses, and no other.

Gradio serves more than this page needs: files by their path, other hosts' files through a proxy, logins, recordings,
monitoring, editing by prompt. What does not answer cannot be abused, also not by a route that a later version adds.
"""

from __future__ import annotations

import re

from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ui.i18n import LANGUAGES

_LANGUAGE = "|".join(re.escape(code) for code in LANGUAGES)
_TYPED = re.compile(rf"/({_LANGUAGE})")  # what a person types who leaves out the last stroke
_USED = re.compile(
    rf"(/({_LANGUAGE}))?/("  # the page in each of its languages
    r"|config|theme\.css|favicon\.ico|robots\.txt|(assets|static|svelte)/.+"
    r"|gradio_api/(queue/(join|data|status)|run/\w+|upload|upload_progress|cancel|reset|info|app_id|startup-events)/?"
    r")"
    r"|/files/[^/]+/[^/]+\.zip"  # exports
)


class Surface:
    """ASGI middleware that answers 404 to whatever the page does not use."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what is used."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and _USED.fullmatch(scope["path"])):
            await self.app(scope, receive, send)
        elif scope["type"] == "http" and _TYPED.fullmatch(scope["path"]):
            await RedirectResponse(scope["path"] + "/")(scope, receive, send)
        elif scope["type"] == "http":
            await PlainTextResponse("There is nothing here.\n", status_code=404)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})  # before accept: the handshake fails
