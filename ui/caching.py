"""What a browser may keep: files whose name holds the digest of their content, for good; pages and answers, not at all.

Gradio says nothing about it, so a browser guesses from a file's age, asks again for some ninety files when the studio
is young, and may leave pages and exports of a shared machine in its disk cache.
"""

from __future__ import annotations

import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEPT, NEVER_KEPT = "public, max-age=31536000, immutable", "no-store"
# A build's files are called name-DIGEST.ext; the theme's address has its digest behind `?v=`.
_BY_DIGEST = re.compile(r"(/\w+)?/assets/[^/]+-[\w-]{8,}\.\w+|(/\w+)?/theme\.css\?v=\w{32,}")
# Kept by their date, as Gradio serves them.
_PLAIN_FILE = re.compile(r"(/\w+)?/(static|svelte|favicon\.ico|robots\.txt)(/.*)?")


class Caching:
    """ASGI middleware that gives every answer its Cache-Control, unless it has one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on, and complete the headers of the answer."""
        if scope["type"] != "http" or _PLAIN_FILE.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        query = scope.get("query_string", b"").decode("latin-1")
        by_digest = _BY_DIGEST.fullmatch(f"{scope['path']}?{query}" if query else scope["path"])

        async def completed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message.get("headers", [])))
                is_kept = by_digest and message["status"] in (200, 304)
                headers.setdefault("Cache-Control", KEPT if is_kept else NEVER_KEPT)
                message = {**message, "headers": headers.raw}
            await send(message)

        await self.app(scope, receive, completed)
