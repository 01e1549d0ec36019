"""The queue steered by hand, jobs that wait for others, failures with their evidence, and settings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns of a job and the table of settings. SQLite takes a reference only within the column itself."""
    op.execute("ALTER TABLE jobs ADD COLUMN after_id VARCHAR(14) REFERENCES jobs (id)")
    op.execute("ALTER TABLE jobs ADD COLUMN memory_bytes BIGINT NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE jobs ADD COLUMN progress_at FLOAT")
    op.execute("ALTER TABLE jobs ADD COLUMN failure JSON NOT NULL DEFAULT '{}'")
    op.create_index("ix_jobs_after_id", "jobs", ["after_id"])
    op.create_table(
        "settings",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("value", sa.JSON, nullable=False),
    )
