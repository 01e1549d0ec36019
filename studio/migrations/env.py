"""What alembic runs: the revisions, on the connection and in the transaction that `runner` hands over."""

from __future__ import annotations

from alembic import context

from studio.tables import Row

context.configure(connection=context.config.attributes["connection"], target_metadata=Row.metadata)
context.run_migrations()
