"""First tables: jobs, metrics, datasets, models, adapters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make every table of the first version."""
    _jobs()
    _metrics()
    _datasets()
    _models()
    _adapters()


def _id() -> sa.Column[str]:
    return sa.Column("id", sa.String(14), primary_key=True)


def _jobs() -> None:
    op.create_table(
        "jobs",
        _id(),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("desired", sa.String, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("idempotency_key", sa.String, unique=True),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("fruitless_attempts", sa.Integer, nullable=False),
        sa.Column("device", sa.String, nullable=False),
        sa.Column("pid", sa.Integer),
        sa.Column("pid_created", sa.Float),
        sa.Column("heartbeat_at", sa.Float),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("total_steps", sa.Integer, nullable=False),
        sa.Column("checkpoint_step", sa.Integer),
        sa.Column("message", sa.String, nullable=False),
        sa.Column("loss", sa.Float),
        sa.Column("eval_loss", sa.Float),
        sa.Column("tokens_per_second", sa.Float),
        sa.Column("eta_s", sa.Float),
        sa.Column("best_step", sa.Integer),
        sa.Column("best_eval_loss", sa.Float),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("started_at", sa.Float),
        sa.Column("finished_at", sa.Float),
        sa.Column("error_what", sa.String, nullable=False),
        sa.Column("error_fix", sa.String, nullable=False),
        sa.Column("error_detail", sa.String, nullable=False),
        sa.Column("result", sa.JSON, nullable=False),
    )
    op.create_index("jobs_queue", "jobs", ["state", "priority", "id"])


def _metrics() -> None:
    op.create_table(
        "metrics",
        sa.Column("job_id", sa.String(14), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("value", sa.Float),
        sqlite_with_rowid=False,
    )


def _datasets() -> None:
    op.create_table(
        "datasets",
        _id(),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("file_name", sa.String, nullable=False),
        sa.Column("stored_name", sa.String, nullable=False),
        sa.Column("format", sa.String, nullable=False),
        sa.Column("rule", sa.String, nullable=False),
        sa.Column("share", sa.Float, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("bad_rows", sa.Integer, nullable=False),
        sa.Column("skip_bad_rows", sa.Boolean, nullable=False),
        sa.Column("sha256", sa.String, nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("problems", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )


def _models() -> None:
    op.create_table(
        "models",
        _id(),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("source", sa.String, nullable=False),
        sa.Column("folder", sa.String),
        sa.Column("architecture", sa.String, nullable=False),
        sa.Column("model_type", sa.String, nullable=False),
        sa.Column("parameters", sa.Integer, nullable=False),
        sa.Column("dtype", sa.String, nullable=False),
        sa.Column("context_length", sa.Integer, nullable=False),
        sa.Column("hidden_size", sa.Integer, nullable=False),
        sa.Column("layers", sa.Integer, nullable=False),
        sa.Column("vocab_size", sa.Integer, nullable=False),
        sa.Column("has_chat_template", sa.Boolean, nullable=False),
        sa.Column("tied_embeddings", sa.Boolean, nullable=False),
        sa.Column("licence", sa.String, nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("targets", sa.JSON, nullable=False),
        sa.Column("job_id", sa.String(14), sa.ForeignKey("jobs.id", ondelete="SET NULL")),
        sa.Column("base_id", sa.String(14), sa.ForeignKey("models.id", ondelete="SET NULL")),
        sa.Column("verified", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )


def _adapters() -> None:
    op.create_table(
        "adapters",
        _id(),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("model_id", sa.String(14), sa.ForeignKey("models.id", ondelete="RESTRICT"), nullable=False),
        sa.Column("job_id", sa.String(14), sa.ForeignKey("jobs.id", ondelete="SET NULL")),
        sa.Column("method", sa.String, nullable=False),
        sa.Column("r", sa.Integer, nullable=False),
        sa.Column("lora_alpha", sa.Float, nullable=False),
        sa.Column("parameters", sa.Integer, nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("sha256", sa.String, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("eval_loss", sa.Float),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_index("ix_adapters_model_id", "adapters", ["model_id"])
