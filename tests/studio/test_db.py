import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from core.errors import DiskFullError
from studio import migrations
from studio.db import Database
from studio.jobs import JobStore
from studio.migrations import runner
from studio.tables import Row
from studio.workspace import Workspace, WorkspaceError
from tests.scenarios.plugin import Say


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "with space #%é?")


def test_a_new_database_has_the_promised_settings(workspace: Workspace) -> None:
    database = Database.open(workspace)
    with database.reading() as session:
        found = {name: session.execute(text(f"PRAGMA {name}")).scalar() for name in
                 ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")}  # fmt: skip
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}
    assert stat.S_IMODE(workspace.database.stat().st_mode) == 0o600


def test_the_migrations_make_the_tables(workspace: Workspace) -> None:
    database = Database.open(workspace)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Row.metadata) == []
        assert runner.current_revision(connection) == runner.REVISION


def test_the_revision_in_the_code_is_the_newest_file() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_current_head() == runner.REVISION


def test_an_up_to_date_database_opens_without_alembic_and_without_a_backup(workspace: Workspace) -> None:
    Database.open(workspace).close()
    code = (
        "import sys; from pathlib import Path; from studio.db import Database; from studio.workspace import Workspace;"
        "Database.open(Workspace(Path(sys.argv[1]))); sys.exit('alembic' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(workspace.root)], check=False).returncode == 0
    assert not workspace.backups.exists()


@pytest.mark.scenario(25)
def test_a_newer_database_is_refused_untouched(workspace: Workspace, figure: Say) -> None:
    Database.open(workspace).close()
    with sqlite3.connect(workspace.database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(WorkspaceError, match=r"newer LoRA Studio.*Upgrade"):
        Database.open(workspace)
    assert sqlite3.connect(workspace.database).execute("SELECT * FROM alembic_version").fetchall() == [("9999",)]
    figure("a newer database: refused with advice, untouched")


@pytest.mark.scenario(25)
def test_a_backup_is_made_before_a_migration(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, figure: Say
) -> None:
    database = Database.open(workspace)
    job = JobStore(database).submit("selftest", "kept", {})
    database.close()

    def upgrade(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE jobs ADD COLUMN extra TEXT"))
        connection.execute(text("UPDATE alembic_version SET version_num = '9998'"))

    monkeypatch.setattr(runner, "REVISION", "9998")
    monkeypatch.setattr(runner, "_upgrade", upgrade)
    Database.open(workspace).close()
    Database.open(workspace).close()
    (backup,) = workspace.backups.iterdir()
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    copy = sqlite3.connect(backup)
    assert copy.execute("SELECT id, name FROM jobs").fetchall() == [(job.id, "kept")]
    assert "extra" not in {row[1] for row in copy.execute("PRAGMA table_info(jobs)")}
    assert "extra" in {row[1] for row in sqlite3.connect(workspace.database).execute("PRAGMA table_info(jobs)")}
    figure("a migration: a private backup before it, every row kept")


def test_a_failing_migration_changes_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    Database.open(workspace).close()

    def upgrade(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE jobs ADD COLUMN extra TEXT"))
        connection.execute(text("no such statement"))

    monkeypatch.setattr(runner, "REVISION", "9998")
    monkeypatch.setattr(runner, "_upgrade", upgrade)
    with pytest.raises(WorkspaceError, match="cannot be used"):
        Database.open(workspace)
    assert "extra" not in {row[1] for row in sqlite3.connect(workspace.database).execute("PRAGMA table_info(jobs)")}


def test_a_file_that_is_no_database_is_explained(workspace: Workspace) -> None:
    workspace.database.write_bytes(b"this is text, not SQLite, and long enough to tell" * 40)
    with pytest.raises(WorkspaceError, match="not a database"):
        Database.open(workspace)


def test_many_processes_may_open_an_empty_workspace_at_once(workspace: Workspace) -> None:
    code = (
        "import sys; from pathlib import Path; from studio.db import Database; from studio.workspace import Workspace;"
        "Database.open(Workspace(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(workspace.root)]
    opening = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(6)]
    assert [(process.communicate()[1], process.returncode) for process in opening] == [(b"", 0)] * 6


def test_a_writer_that_fails_leaves_nothing(workspace: Workspace) -> None:
    database = Database.open(workspace)
    store = JobStore(database)
    job = store.submit("selftest", "before", {})
    with pytest.raises(ZeroDivisionError), database.writing() as session:
        session.execute(text("UPDATE jobs SET name = 'after'"))
        _ = 1 / 0
    assert store.get(job.id).name == "before"


def test_a_lock_that_is_kept_is_explained(workspace: Workspace) -> None:
    database = Database.open(workspace)
    other = sqlite3.connect(workspace.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 100")  # the pool hands this connection to the next writer
    with pytest.raises(WorkspaceError, match="busy"):
        JobStore(database).submit("selftest", "job", {})
    other.execute("ROLLBACK")
    assert JobStore(database).submit("selftest", "job", {}).state == "queued"


def test_a_full_disk_is_explained(workspace: Workspace) -> None:
    database = Database.open(workspace)
    with database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFullError, match="disk is full"):
        JobStore(database).submit("selftest", "x" * 100_000, {})
    assert JobStore(database).list() == []


def test_a_second_open_leaves_the_locks_of_the_first_alone(tmp_path: Path) -> None:
    """Closing any descriptor of a file drops a process's POSIX locks on it: the first connection must keep its own."""
    workspace = Workspace.open(tmp_path)
    first = Database.open(workspace)
    with first.reading() as session:
        session.execute(text("SELECT count(*) FROM jobs"))
        before = _posix_locks(workspace.database)
        Database.open(workspace).close()
        assert before and _posix_locks(workspace.database) == before
    first.close()


def _posix_locks(path: Path) -> int:
    """How many record locks this process holds on a file, as the kernel tells."""
    import os

    locks = Path("/proc/locks")
    if not locks.exists():
        pytest.skip("only Linux lists the locks of a process")
    mine = f" {os.getpid()} "
    return sum(mine in line and line.split()[5].endswith(f":{path.stat().st_ino}") for line in locks.open())
