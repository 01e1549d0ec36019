"""Downloads: `GET /files/{kind}/{id}.zip` streams a model's or an adapter's folder as one file.

The browser names an id, never a path. The zip is stored, not compressed (weights do not shrink), and made while it is
sent: nothing is written to disk, memory stays at one chunk, and the size is known before the first byte.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from core.errors import StudioError
from studio.stored_zip import StoredZip

if TYPE_CHECKING:
    from studio.service import Studio

KINDS = ("model", "adapter", "portable", "problems")
PROBLEMS = "rows-with-problems"
_ID = re.compile(r"[A-Za-z0-9]{1,64}")


def files_route(studio: Studio) -> Route:
    """The route to put into a Starlette or FastAPI app, behind the guard and before Gradio's own routes."""

    async def download(request: Request) -> Response:
        kind, item_id = request.path_params["kind"], request.path_params["item_id"]
        if kind not in KINDS or not _ID.fullmatch(item_id):
            return PlainTextResponse("There is no such file.\n", status_code=404)
        try:
            archive, name = await run_in_threadpool(open_export, studio, kind, item_id)
        except StudioError as error:
            return PlainTextResponse(f"{error}\n", status_code=404)
        headers = {"Content-Length": str(archive.size), "Content-Disposition": content_disposition(name, item_id)}
        body = iter(()) if request.method == "HEAD" else archive.chunks()
        return StreamingResponse(body, media_type="application/zip", headers=headers)

    return Route("/files/{kind}/{item_id}.zip", download, methods=["GET"], name="files")


def open_export(studio: Studio, kind: str, item_id: str) -> tuple[StoredZip, str]:
    """The zip of a model or an adapter, and the name it is offered under; StudioError when there is none."""
    folder = studio.export_path(kind, item_id)
    if kind == "problems":
        return StoredZip(folder, top=PROBLEMS), PROBLEMS
    item = studio.model(item_id) if kind == "model" else studio.adapter(item_id)
    name = file_stem(item.name) or f"{kind}-{item_id}"
    name = f"{name}-portable" if kind == "portable" else name
    return StoredZip(folder, top=name), name


def file_stem(name: str) -> str:
    """A display name as a file name that is safe on every system; "" when nothing is left."""
    plain = unicodedata.normalize("NFKC", name)
    kept = re.sub(r"[^\w.-]+", "-", plain).strip("-._")
    return kept[:80]


def content_disposition(stem: str, item_id: str) -> str:
    """The header that makes a browser save the answer as `stem`.zip, also when that is not ASCII (RFC 6266).

    A program that reads ASCII alone gets what is left of the stem, with the id where that is too little to tell.
    """
    plain = file_stem(stem.encode("ascii", "ignore").decode())
    plain = plain if plain == stem else "-".join(filter(None, (plain, item_id)))
    return f"attachment; filename=\"{plain}.zip\"; filename*=UTF-8''{quote(f'{stem}.zip', safe='')}"


def write_zip(folder: Path, out: Path) -> Path:
    """Write the same zip to a file, which appears under its name only when it is whole."""
    partial = out.with_name(f".{out.name}.partial")
    try:
        with partial.open("wb") as file:
            for chunk in StoredZip(folder, top=out.stem).chunks():
                file.write(chunk)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out
