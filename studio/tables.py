"""The tables of the database, as typed rows. `studio/migrations` makes them; a test holds the two together."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, String
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from studio.workspace import new_id


class Row(MappedAsDataclass, DeclarativeBase):
    """A row that stays readable after its transaction; change one through its store, not by assignment."""

    type_annotation_map = {dict[str, Any]: JSON, list[dict[str, Any]]: JSON, float: Float}


class JobRow(Row, kw_only=True):
    """A job: what to do, where it stands, who works on it, and how it ended. Times are seconds since 1970."""

    __tablename__ = "jobs"
    __table_args__ = (Index("jobs_queue", "state", "priority", "id"),)

    id: Mapped[str] = mapped_column(String(14), primary_key=True, default_factory=new_id)
    kind: Mapped[str]
    name: Mapped[str]
    state: Mapped[str] = mapped_column(default="queued")
    desired: Mapped[str] = mapped_column(default="run")
    spec: Mapped[dict[str, Any]] = mapped_column(default_factory=dict)
    idempotency_key: Mapped[str | None] = mapped_column(default=None, unique=True)
    priority: Mapped[int] = mapped_column(default=0)  # the lowest is claimed first, then the oldest
    # the job whose success it waits for
    after_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), default=None, index=True)
    memory_bytes: Mapped[int] = mapped_column(BigInteger, default=0)  # planned need on its device; 0 when unknown

    attempt: Mapped[int] = mapped_column(default=0)  # rises with every claim; the fence around a worker's writes
    fruitless_attempts: Mapped[int] = mapped_column(default=0)  # claims since the last checkpoint
    device: Mapped[str] = mapped_column(default="")
    pid: Mapped[int | None] = mapped_column(default=None)
    pid_created: Mapped[float | None] = mapped_column(default=None)  # with pid, the identity of a process
    heartbeat_at: Mapped[float | None] = mapped_column(default=None)
    progress_at: Mapped[float | None] = mapped_column(default=None)  # when its work last went on; decides nothing

    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int] = mapped_column(default=0)
    checkpoint_step: Mapped[int | None] = mapped_column(default=None)
    message: Mapped[str] = mapped_column(default="")
    loss: Mapped[float | None] = mapped_column(default=None)
    eval_loss: Mapped[float | None] = mapped_column(default=None)
    tokens_per_second: Mapped[float | None] = mapped_column(default=None)
    eta_s: Mapped[float | None] = mapped_column(default=None)
    best_step: Mapped[int | None] = mapped_column(default=None)
    best_eval_loss: Mapped[float | None] = mapped_column(default=None)

    created_at: Mapped[float] = mapped_column(default_factory=time.time)
    started_at: Mapped[float | None] = mapped_column(default=None)
    finished_at: Mapped[float | None] = mapped_column(default=None)
    error_what: Mapped[str] = mapped_column(default="")
    error_fix: Mapped[str] = mapped_column(default="")
    error_detail: Mapped[str] = mapped_column(default="")
    failure: Mapped[dict[str, Any]] = mapped_column(default_factory=dict)  # the kind of a failure and its evidence
    result: Mapped[dict[str, Any]] = mapped_column(default_factory=dict)


class MetricRow(Row, kw_only=True):
    """One value of one curve. A resumed step overwrites its value, so a curve has neither gap nor double."""

    __tablename__ = "metrics"
    __table_args__ = ({"sqlite_with_rowid": False},)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float | None]  # SQLite knows no NaN: NULL stands for it


class SettingRow(Row, kw_only=True):
    """A choice of the user's that outlives every process, such as that the queue is paused."""

    __tablename__ = "settings"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(JSON)


class DatasetRow(Row, kw_only=True):
    """An immutable version of an uploaded file, kept as datasets/<id>/<stored_name>."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(String(14), primary_key=True, default_factory=new_id)
    name: Mapped[str]
    file_name: Mapped[str]  # as the user called it: shown, never a path
    stored_name: Mapped[str]
    format: Mapped[str]
    rule: Mapped[str]
    share: Mapped[float]
    rows: Mapped[int]
    bad_rows: Mapped[int]
    skip_bad_rows: Mapped[bool] = mapped_column(default=False)
    sha256: Mapped[str]
    size_bytes: Mapped[int]
    problems: Mapped[list[dict[str, Any]]] = mapped_column(default_factory=list)
    created_at: Mapped[float] = mapped_column(default_factory=time.time)


class ModelRow(Row, kw_only=True):
    """A base or merged model. `folder` is set when the user's own folder is used in place, else models/<id>."""

    __tablename__ = "models"

    id: Mapped[str] = mapped_column(String(14), primary_key=True, default_factory=new_id)
    name: Mapped[str]
    kind: Mapped[str] = mapped_column(default="base")  # base or merged
    source: Mapped[str]
    folder: Mapped[str | None] = mapped_column(default=None)
    architecture: Mapped[str]
    model_type: Mapped[str]
    parameters: Mapped[int]
    dtype: Mapped[str]
    context_length: Mapped[int]
    hidden_size: Mapped[int]
    layers: Mapped[int]
    vocab_size: Mapped[int]
    has_chat_template: Mapped[bool]
    tied_embeddings: Mapped[bool]
    licence: Mapped[str]
    size_bytes: Mapped[int]
    targets: Mapped[list[dict[str, Any]]] = mapped_column(default_factory=list)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"), default=None)
    base_id: Mapped[str | None] = mapped_column(ForeignKey("models.id", ondelete="SET NULL"), default=None)
    verified: Mapped[dict[str, Any]] = mapped_column(default_factory=dict)
    created_at: Mapped[float] = mapped_column(default_factory=time.time)


class AdapterRow(Row, kw_only=True):
    """A trained or imported adapter, kept as adapters/<id>/ in PEFT's layout."""

    __tablename__ = "adapters"

    id: Mapped[str] = mapped_column(String(14), primary_key=True, default_factory=new_id)
    name: Mapped[str]
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id", ondelete="RESTRICT"), index=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"), default=None)
    method: Mapped[str]
    r: Mapped[int]
    lora_alpha: Mapped[float]
    parameters: Mapped[int]
    size_bytes: Mapped[int]
    sha256: Mapped[str]  # of adapter_model.safetensors
    step: Mapped[int]
    eval_loss: Mapped[float | None] = mapped_column(default=None)
    created_at: Mapped[float] = mapped_column(default_factory=time.time)
