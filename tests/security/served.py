"""Apps on ports of their own, in threads of the test: the studio's own web app among them, with a full library."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from core.models import inspect_model
from studio.artifacts import model_row
from studio.service import Studio
from studio.tables import AdapterRow, JobRow
from tests.security.hostile_models import sound_model
from ui.server import Address, make_app


class Served:
    """An app on a port of its own, in a thread."""

    def __init__(self, make: Callable[[int], ASGIApp]) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = uvicorn.Server(uvicorn.Config(make(self.port), log_level="error", ws="none"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.02)

    def end(self) -> None:
        """Stop at once."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)


def studio_app(studio: Studio, port: int) -> ASGIApp:
    """The app that `lora-studio serve` serves, guard included."""
    return make_app(studio, Address("127.0.0.1", port, "", ()))


def paths_of(app: Any) -> list[str]:
    """Every path of an app: its routes, its mounts, and the routers that FastAPI includes lazily."""

    def walk(routes: Any, prefix: str) -> Iterator[str]:
        for route in routes:
            path = prefix + (getattr(route, "path", None) or "")
            yield path or "/"
            inner = getattr(route, "original_router", route)
            yield from walk(getattr(inner, "routes", None) or [], path)

    while not hasattr(app, "routes"):  # behind middlewares
        app = app.app
    return sorted(set(walk(app.routes, "")))


def fill(studio: Studio, names: list[str], folder: Path) -> None:
    """File a dataset, a model, an adapter and a failed job under each name; no process is started."""
    model_folder = sound_model(folder / "model")
    for index, name in enumerate(names):
        data = folder / f"rows-{index}.jsonl"
        rows = [{"text": f"{name} {number}"} for number in range(3)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        studio.add_dataset(data, name=name)
        model = model_row(inspect_model(model_folder), name=name, source=name, folder=str(model_folder))
        job = JobRow(kind="train", name=name, state="failed", message=name, error_what=name, error_fix=name)
        adapter = AdapterRow(
            name=name, model_id=model.id, method="lora", r=4, lora_alpha=8.0, parameters=1, size_bytes=1, step=1,
            sha256="0" * 64,
        )  # fmt: skip
        with studio._database.writing() as session:
            session.add_all([model, job])
            session.flush()
            session.add(adapter)
