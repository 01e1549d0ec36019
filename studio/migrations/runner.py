"""Brings a database to this version of the studio: a copy first, then every missing revision in one transaction."""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from studio.workspace import WorkspaceError

REVISION = "0002"  # the newest file of `versions`; kept here so that an up-to-date start need not import alembic


def migrate(reader: Engine, writer: Engine, backups: Path) -> None:
    """Apply what is missing. WorkspaceError for a database that a newer studio has written.

    `writer` is an engine whose transactions take the write lock at their start: when several processes come at once,
    one of them migrates and the others find nothing left to do.
    """
    with reader.connect() as connection:
        found = current_revision(connection)
    if found == REVISION:
        return
    _refuse_newer(found)
    if found:
        _back_up(reader, backups, found)
    with writer.begin() as connection:
        if current_revision(connection) != REVISION:
            _upgrade(connection)


def current_revision(connection: Connection) -> str:
    """The revision a database is at, or "" for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")


def _refuse_newer(found: str) -> None:
    if found > REVISION:
        raise WorkspaceError(
            f"This workspace was written by a newer LoRA Studio (tables {found}, this version knows {REVISION}).",
            "Upgrade LoRA Studio, or pick another workspace with --workspace.",
        )


def _back_up(engine: Engine, backups: Path, found: str) -> None:
    backups.mkdir(mode=0o700, exist_ok=True)
    target = backups / f"{found}-{time.time_ns()}.db"
    connection = engine.raw_connection()  # VACUUM cannot run inside a transaction, which a Connection would begin
    try:
        connection.cursor().execute("VACUUM INTO ?", (str(target),))
    finally:
        connection.close()
    target.chmod(0o600)


def _upgrade(connection: Connection, revision: str = "head") -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
