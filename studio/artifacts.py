"""The library: rows of datasets, models and adapters, and the folders that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import String, select, type_coerce
from sqlalchemy.orm import Session

from core.errors import AdapterError, DatasetError, ModelError, StudioError
from core.models import ModelInfo
from studio.db import Database
from studio.tables import AdapterRow, DatasetRow, JobRow, ModelRow
from studio.workspace import Workspace

R = TypeVar("R", DatasetRow, ModelRow, AdapterRow)
UNFINISHED = ("queued", "running", "paused")


class Library:
    """Datasets, models and adapters of one workspace. Returned rows are snapshots: changing one changes nothing."""

    def __init__(self, database: Database, workspace: Workspace) -> None:
        self.database = database
        self.workspace = workspace

    def add(self, row: DatasetRow | ModelRow | AdapterRow) -> None:
        """File a row; its folder must be complete before."""
        with self.database.writing() as session:
            session.add(row)

    def datasets(self) -> Sequence[DatasetRow]:
        """Every dataset, the newest first."""
        return self._list(DatasetRow)

    def models(self) -> Sequence[ModelRow]:
        """Every model, the newest first."""
        return self._list(ModelRow)

    def adapters(self, model_id: str | None = None) -> Sequence[AdapterRow]:
        """Every adapter, or those of one model, the newest first."""
        return [row for row in self._list(AdapterRow) if model_id in (None, row.model_id)]

    def dataset(self, dataset_id: str) -> DatasetRow:
        """One dataset; DatasetError when there is none with this id."""
        return self._get(DatasetRow, dataset_id, DatasetError)

    def model(self, model_id: str) -> ModelRow:
        """One model; ModelError when there is none with this id."""
        return self._get(ModelRow, model_id, ModelError)

    def adapter(self, adapter_id: str) -> AdapterRow:
        """One adapter; AdapterError when there is none with this id."""
        return self._get(AdapterRow, adapter_id, AdapterError)

    def has(self, item_id: str) -> bool:
        """Whether a dataset, a model or an adapter with this id is there: no two items share one."""
        with self.database.reading() as session:
            return any(session.get(table, item_id) is not None for table in (DatasetRow, ModelRow, AdapterRow))

    def model_folder(self, row: ModelRow) -> Path:
        """Where a model's files are: the user's own folder, or the workspace's."""
        return Path(row.folder) if row.folder else self.workspace.model_folder(row.id)

    def adapter_folder(self, row: AdapterRow) -> Path:
        """Where an adapter's files are."""
        return self.workspace.adapter_folder(row.id)

    def delete_dataset(self, dataset_id: str) -> None:
        """Delete a dataset, its files and all kept tokens; DatasetError while an unfinished job needs it."""
        with self.database.writing() as session:
            row = _row(session, DatasetRow, dataset_id, DatasetError)
            _refuse_in_use(session, dataset_id, row.name, DatasetError)
            session.delete(row)
        self.workspace.discard(self.workspace.dataset_folder(dataset_id))
        self.workspace.discard(self.workspace.tokens)  # they do not say whose they are, and are soon made again

    def delete_model(self, model_id: str) -> None:
        """Delete a model; ModelError while an adapter or an unfinished job needs it. The user's own folders stay."""
        with self.database.writing() as session:
            row = _row(session, ModelRow, model_id, ModelError)
            _refuse_in_use(session, model_id, row.name, ModelError)
            if session.scalar(select(AdapterRow.id).where(AdapterRow.model_id == model_id).limit(1)):
                raise ModelError(f"{row.name} has adapters.", "Delete its adapters first.")
            session.delete(row)
        if row.folder is None:
            self.workspace.discard(self.workspace.model_folder(model_id))

    def delete_adapter(self, adapter_id: str) -> None:
        """Delete an adapter and its folder; AdapterError while an unfinished job needs it."""
        with self.database.writing() as session:
            row = _row(session, AdapterRow, adapter_id, AdapterError)
            _refuse_in_use(session, adapter_id, row.name, AdapterError)
            session.delete(row)
        self.workspace.discard(self.workspace.adapter_folder(adapter_id))

    def _list(self, table: type[R]) -> Sequence[R]:
        with self.database.reading() as session:
            return session.scalars(select(table).order_by(table.id.desc())).all()

    def _get(self, table: type[R], item_id: str, error: type[StudioError]) -> R:
        with self.database.reading() as session:
            return _row(session, table, item_id, error)


def _row(session: Session, table: type[R], item_id: str, error: type[StudioError]) -> R:
    row = session.get(table, item_id)
    if row is None:
        noun = table.__tablename__.removesuffix("s")
        raise error(f"There is no {noun} {item_id!r}.", f"Take the id from the list of {table.__tablename__}.")
    return row


def _refuse_in_use(session: Session, item_id: str, name: str, error: type[StudioError]) -> None:
    """Raise `error` when the spec of an unfinished job names the item anywhere: no two items share an id."""
    named = type_coerce(JobRow.spec, String).contains(item_id, autoescape=True)
    job = session.scalar(select(JobRow).where(JobRow.state.in_(UNFINISHED), named).limit(1))
    if job is not None:
        raise error(f"{name} is needed by the job {job.name} ({job.state}).", "Cancel that job first.")


def model_row(info: ModelInfo, **facts: Any) -> ModelRow:
    """A row for an inspected model; `facts` are the columns that its files do not tell, such as its name and source."""
    columns = ("architecture", "model_type", "parameters", "dtype", "context_length", "hidden_size", "layers")
    more = ("vocab_size", "has_chat_template", "tied_embeddings", "licence", "size_bytes")
    targets = [{"name": target.name, "group": target.group, "shapes": target.shapes} for target in info.targets]
    return ModelRow(targets=targets, **{name: getattr(info, name) for name in (*columns, *more)}, **facts)
