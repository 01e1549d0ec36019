"""Opening the database so that no write is lost: WAL, full sync, and writers that take the lock before they read.

SQLAlchemy's defaults begin a transaction as a reader; two such transactions that read, then write, lose an update or
fail with "database is locked" whatever the busy timeout is. Here a writer starts with BEGIN IMMEDIATE, which waits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session

from core.errors import DiskFullError
from studio.migrations.runner import migrate
from studio.workspace import Workspace, WorkspaceError

BUSY_TIMEOUT_MS = 30_000
PRAGMAS = (f"busy_timeout = {BUSY_TIMEOUT_MS}", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON")


class Database:
    """One SQLite file: `reading()` and `writing()` each give a session in a transaction of the right kind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine = _engine(path)
        self._writer = self.engine.execution_options(begin="BEGIN IMMEDIATE")

    @classmethod
    def open(cls, workspace: Workspace) -> Database:
        """Open the workspace's database, made or migrated where needed; WorkspaceError when it cannot be used."""
        _create_private(workspace.database)
        database = cls(workspace.database)
        try:
            migrate(database.engine, database._writer, workspace.backups)
        except DatabaseError as error:
            database.close()
            raise WorkspaceError(
                f"The database {workspace.database} cannot be used: {error.orig}.",
                f"Check the disk; copies from before each upgrade lie in {workspace.backups.name!r} beside it.",
            ) from error
        except WorkspaceError:
            database.close()
            raise
        return database

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one moment of the database and writes nothing."""
        with Session(self.engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that holds the write lock from its start; it commits at the end, or rolls back on an error.

        Raises WorkspaceError when another process keeps the lock, and DiskFullError.
        """
        try:
            with Session(self._writer, expire_on_commit=False) as session, session.begin():
                session.connection()  # takes the lock now, before the caller reads anything
                yield session
        except OperationalError as error:
            raise _explained(error) from error

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def _explained(error: OperationalError) -> Exception:
    """What the user can do about a failed write; the error itself where that is unknown."""
    reason = str(error.orig)
    if "locked" in reason:
        return WorkspaceError(
            f"The database is busy: another process has held it for {BUSY_TIMEOUT_MS // 1000} s.",
            "Try again; if it stays so, restart the studio: a process of it may be stopped or hanging.",
        )
    if "full" in reason:
        return DiskFullError("The disk is full: the database could not be written.", "Free some space, then try again.")
    return error


def _create_private(path: Path) -> None:
    """Make the file, readable by this user alone. One that exists is not opened here: closing it would drop every
    lock that SQLite holds on it in this process (POSIX), and another process could then take its log away.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise WorkspaceError(
            f"The database {path} cannot be opened: {error.strerror}.", "Check that you may write to the workspace."
        ) from error


def _engine(path: Path) -> Engine:
    engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions behind our back
    cursor = connection.cursor()
    for pragma in PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))
