"""The studio as one object: everything the page and the CLI can do, in plain calls.

It never imports torch: training, merging, importing and chatting happen in other processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.config import AdapterConfig, TrainConfig, to_dict
from core.data.recipe import Recipe
from core.errors import AdapterError, ConfigError, DatasetError
from core.methods import methods
from core.models import ModelInfo, inspect_model
from studio import system
from studio.adapter_shelf import AdapterShelf
from studio.artifacts import Library
from studio.board import JobBoard
from studio.chat_client import ChatClient
from studio.db import Database
from studio.job_desk import JobDesk
from studio.kinds.add_model import absolute_source
from studio.plan import Facts, make_plan
from studio.shelf import DatasetShelf
from studio.show import adapter_view, job_view, model_view
from studio.spec import from_yaml
from studio.tables import ModelRow
from studio.token_client import TokenClient
from studio.token_counts import token_lengths
from studio.views import (
    AdapterView,
    ChatChunk,
    ChatPane,
    DatasetView,
    JobView,
    LengthsView,
    ModelView,
    PlanView,
    PreviewRow,
    SystemView,
    TokenRow,
)
from studio.workspace import Workspace

MERGE_DTYPES = ("base", "float32")


class Studio(JobDesk):
    """One workspace, opened. Every method raises StudioError (what, fix) on what a user can get wrong."""

    def __init__(self, root: Path | None = None) -> None:
        workspace = Workspace.open(root)
        super().__init__(workspace, Database.open(workspace))
        self._library = Library(self._database, self.workspace)
        self.dataset_shelf = DatasetShelf(self.workspace, self._library)
        self.adapter_shelf = AdapterShelf(self.workspace, self._library)
        self.board = JobBoard(self, self._jobs)
        self._chat = ChatClient(self.workspace)
        self._tokens = TokenClient(self.workspace)
        self._lengths = lru_cache(maxsize=32)(self._measure_lengths)

    def close(self) -> None:
        """Let go of the chat process and the database; jobs go on."""
        self._chat.close()
        self._tokens.close()
        self._database.close()

    # -- datasets

    def add_dataset(
        self, path: Path, *, name: str = "", format: str | None = None, skip_bad_rows: bool = False
    ) -> DatasetView:
        """Store a file as an immutable dataset; DatasetError names the first bad row unless those are skipped."""
        recipe = Recipe(format)
        return self.dataset_shelf.add([path], name, recipe.skipping_errors() if skip_bad_rows else recipe)

    def fetch_dataset(
        self, hub_id: str, *, subset: str = "", split: str = "train", name: str = "", idempotency_key: str = ""
    ) -> JobView:
        """Start a job that fetches a dataset of the hub and adds it, its bad rows left out."""
        hub_id, split = hub_id.strip(), split.strip() or "train"
        if not hub_id:
            raise DatasetError("No dataset is named.", "Give a hub id such as owner/name.")
        spec = {"hub_id": hub_id, "subset": subset.strip(), "split": split, "name": name.strip()}
        return self.submit("add_dataset", name.strip() or hub_id, spec, idempotency_key)

    def datasets(self) -> list[DatasetView]:
        """Every dataset, the newest first."""
        return [self.dataset_shelf.view(row) for row in self._library.datasets()]

    def dataset(self, dataset_id: str) -> DatasetView:
        """One dataset."""
        return self.dataset_shelf.view(self._library.dataset(dataset_id))

    def preview(self, dataset_id: str, *, start: int = 0, count: int = 10) -> list[PreviewRow]:
        """Some rows of a dataset as conversations."""
        return self.dataset_shelf.preview(dataset_id, start, count)

    def token_rows(
        self, dataset_id: str, model_id: str, *, start: int = 0, count: int = 10, max_length: int = 0
    ) -> list[TokenRow]:
        """Some rows of a dataset as the tokens that a model sees, each marked as trained or not."""
        records = self.dataset_shelf.records(dataset_id)[max(0, start) : max(0, start) + count]
        return self._tokens.rows(self._library.model_folder(self._library.model(model_id)), records, max_length)

    def token_lengths(self, dataset_id: str, model_id: str, *, max_length: int = 0) -> LengthsView:
        """How long a dataset's rows are in a model's tokens, and what is trained; takes seconds the first time."""
        records = self.dataset_shelf.records(dataset_id)
        stored = self.dataset_shelf.records_path(dataset_id)
        return self._tokens.lengths(
            self._library.model_folder(self._library.model(model_id)), records, stored, max_length
        )

    def delete_dataset(self, dataset_id: str) -> None:
        """Remove a dataset that no unfinished job needs."""
        self._library.delete_dataset(dataset_id)

    def formats(self) -> list[str]:
        """The names of the formats that a dataset can have."""
        from core.data.formats import formats

        return formats.names()

    # -- models and adapters

    def models(self) -> list[ModelView]:
        """Every base and merged model, the newest first."""
        return [model_view(row) for row in self._library.models()]

    def model(self, model_id: str) -> ModelView:
        """One model."""
        return model_view(self._library.model(model_id))

    def add_model(self, source: str, *, name: str = "", idempotency_key: str = "") -> JobView:
        """Start a job that fetches or converts a model: 'starter', a hub id, a folder or a GGUF file."""
        source = source.strip()
        if not source:
            raise ConfigError("No model is named.", "Give 'starter', a hub id, a folder or a GGUF file.")
        spec = {"source": absolute_source(source), "name": name.strip()}
        return self.submit("add_model", name.strip() or Path(source).name, spec, idempotency_key)

    def usual_targets(self, model_id: str, method: str) -> tuple[str, ...]:
        """The kinds of layers of a model that a method adapts when nothing else is chosen."""
        info = self._info(self._library.model(model_id))
        return tuple(target.name for target in methods.get(method).targets(info, AdapterConfig(method=method)))

    def delete_model(self, model_id: str) -> None:
        """Remove a model that nothing needs; a folder of the user's own stays where it is."""
        self._library.delete_model(model_id)

    def adapters(self, model_id: str | None = None) -> list[AdapterView]:
        """Every adapter, or those of one model, the newest first."""
        return [adapter_view(row) for row in self._library.adapters(model_id)]

    def adapter(self, adapter_id: str) -> AdapterView:
        """One adapter."""
        return adapter_view(self._library.adapter(adapter_id))

    def delete_adapter(self, adapter_id: str) -> None:
        """Remove an adapter that no unfinished job needs."""
        self._library.delete_adapter(adapter_id)
        self.adapter_shelf.forget(adapter_id)

    def has(self, item_id: str) -> bool:
        """Whether a dataset, a model or an adapter with this id is in the library."""
        return self._library.has(item_id)

    # -- planning and jobs

    def plan(self, model_id: str, dataset_id: str, config: TrainConfig) -> PlanView:
        """Steps, time, memory and disk of a run, and a checklist; nothing is started."""
        row, data = self._library.model(model_id), self.dataset(dataset_id)
        facts = Facts(
            info=self._info(row),
            rows=data.rows,
            duplicate_rows=data.counts.get("duplicate", 0),
            lengths=self._lengths(model_id, dataset_id),
            device=system.devices()[0],
            disk_free_bytes=shutil.disk_usage(self.workspace.root).free,
            tokens_per_second=self._curves.usual_speed(model_id),
            format=data.format,
        )
        return make_plan(facts, config)

    def train(
        self,
        model_id: str,
        dataset_id: str,
        config: TrainConfig,
        *,
        name: str = "",
        idempotency_key: str = "",
        device: str = "",
    ) -> JobView:
        """Queue a training job; ConfigError when its plan holds an error. `device` "cpu" leaves the GPUs alone."""
        plan = self.plan(model_id, dataset_id, config)
        wrong = next((check for check in plan.checks if check.level == "error"), None)
        if wrong is not None:
            raise ConfigError(wrong.text, wrong.fix)
        spec = {"model_id": model_id, "dataset_id": dataset_id, "train": to_dict(config)}
        spec |= {"device": device} if device else {}
        name = name.strip() or self.dataset(dataset_id).name
        return self.submit("train", name, spec, idempotency_key, memory_bytes=plan.memory_total_bytes)

    def merge(self, adapter_id: str, *, name: str = "", dtype: str = "base", idempotency_key: str = "") -> JobView:
        """Queue a job that merges an adapter into its base and verifies the result; AdapterError when it cannot merge.

        `dtype` "base" keeps the base's number format, which rounds 16-bit weights once; "float32" rounds nothing.
        """
        adapter = self.adapter(adapter_id)
        self._library.model(adapter.model_id)
        if adapter.unmergeable:
            raise AdapterError(adapter.unmergeable, "Use it as an adapter.")
        name = name.strip() or f"{adapter.name} merged"
        if dtype not in MERGE_DTYPES:
            raise ConfigError(f"A merged model cannot be {dtype!r}.", f"Pick one of: {', '.join(MERGE_DTYPES)}.")
        return self.submit("merge", name, {"adapter_id": adapter_id, "name": name, "dtype": dtype}, idempotency_key)

    def evaluate(
        self,
        model_id: str,
        dataset_id: str,
        adapter_ids: Sequence[str] = (),
        *,
        fields: Sequence[str] = (),
        name: str = "",
        idempotency_key: str = "",
    ) -> JobView:
        """Queue a job that measures a base and its adapters on a dataset; `fields` are keys of a JSON answer."""
        model, data = self._library.model(model_id), self.dataset(dataset_id)
        for adapter_id in adapter_ids:
            if self._library.adapter(adapter_id).model_id != model_id:
                raise ConfigError(f"The adapter {adapter_id} is not one of {model.name}.", "Pick one of its own.")
        spec = {"model_id": model_id, "dataset_id": dataset_id, "adapter_ids": [*adapter_ids], "fields": [*fields]}
        return self.submit("evaluate", name.strip() or data.name, spec, idempotency_key)

    def parse_spec_yaml(self, text: str) -> Mapping[str, Any]:
        """Read a job file: name, model, dataset, and train as a TrainConfig."""
        return from_yaml(text)

    # -- chat

    def chat(
        self,
        model_id: str,
        panes: Sequence[ChatPane],
        conversations: Sequence[Sequence[tuple[str, str]]],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.7,
        top_p: float = 0.9,
        seed: int = 0,
    ) -> Iterator[ChatChunk]:
        """Answer one conversation (role, text) per pane, streamed side by side; closing the iterator stops it."""
        folders = [
            None if pane.adapter_id is None else self.workspace.adapter_folder(self.adapter(pane.adapter_id).id)
            for pane in panes
        ]
        settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        base = self._library.model_folder(self._library.model(model_id))
        return self._chat.stream(base, folders, conversations, settings)

    def stop_chat(self) -> None:
        """End the chat process and free its memory; the next chat starts it again."""
        self._chat.close()

    # -- files and machine

    def export_path(self, kind: str, item_id: str) -> Path:
        """The folder that `/files/<kind>/<id>.zip` streams; kind is 'model', 'adapter', 'portable' or 'problems'."""
        if kind == "problems" and self.workspace.problems_folder(item_id).is_dir():
            return self.workspace.problems_folder(item_id)
        if kind == "adapter":
            return self.workspace.adapter_folder(self.adapter(item_id).id)
        if kind == "portable":
            return self.adapter_shelf.portable_folder(item_id)
        if kind == "model":
            row = self._library.model(item_id)
            if row.folder:
                raise ConfigError(f"{row.name} is a folder of your own, not of the studio.", "Copy it from there.")
            return self._library.model_folder(row)
        raise ConfigError(f"There is nothing to download of kind {kind!r}.", "Download a model or an adapter.")

    def system(self) -> SystemView:
        """The state of this machine and of the workspace."""
        running = [job_view(row) for row in self._jobs.list(("running",))]
        return system.overview(self.workspace, running, self._jobs.count("queued"))

    def _info(self, row: ModelRow) -> ModelInfo:
        return inspect_model(self._library.model_folder(row))

    def _measure_lengths(self, model_id: str, dataset_id: str) -> tuple[int, ...]:
        folder = self._library.model_folder(self._library.model(model_id))
        return tuple(token_lengths(folder, self.dataset_shelf.records(dataset_id)))
