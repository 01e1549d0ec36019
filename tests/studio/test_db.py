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
from sqlalchemy import Connection, MetaData, Table, text

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


def history() -> ScriptDirectory:
    """Every revision there has been, from the files."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return ScriptDirectory.from_config(config)


def test_the_revision_in_the_code_is_the_newest_file() -> None:
    assert history().get_current_head() == runner.REVISION


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


@pytest.mark.scenario(25)
def test_databases_of_every_revision_come_to_this_one(tmp_path: Path, figure: Say) -> None:
    """Each made by the migrations as they were then, with rows in every table; nothing of a row changes."""
    older = [script.revision for script in history().walk_revisions() if script.revision != runner.REVISION]
    filled = 0
    for revision in older:
        workspace = Workspace.open(tmp_path / revision)
        before = database_at(revision, workspace.database, rows=20)
        Database.open(workspace).close()
        (backup,) = workspace.backups.iterdir()
        assert contents(backup) == before, "the copy is the database as it was"
        after = contents(workspace.database)
        for table, rows in before.items():
            assert [row | rows[place] for place, row in enumerate(after[table])] == after[table], (revision, table)
            filled += len(rows)
        reopened = Database.open(workspace)
        assert {job.state for job in JobStore(reopened).list()} == {"succeeded"}
        reopened.close()
    assert filled >= 100 * len(older) > 0
    figure(
        f"databases of every earlier revision ({len(older)}; no version has been released yet): all {filled} "
        "rows kept, the backup equal to what was there"
    )


def database_at(revision: str, path: Path, rows: int) -> dict[str, list[dict[str, object]]]:
    """Make a database as the studio did at `revision`, fill every table, and return what it holds."""
    database = Database(path)
    with database.engine.begin() as connection:
        runner._upgrade(connection, revision)
        connection.execute(text("PRAGMA defer_foreign_keys = ON"))
        tables = MetaData()
        tables.reflect(connection)
        for table in tables.sorted_tables:
            if table.name != "alembic_version":
                connection.execute(table.insert(), [a_row(table, place) for place in range(rows)])
    database.close()
    return contents(path)


def a_row(table: Table, place: int) -> dict[str, object]:
    """A value in every column: the state of a job that is over, references to the row of the same place."""
    texts = {"state": "succeeded", "desired": "run", "kind": "train"}
    made: dict[type, object] = {str: f"row {place}", int: place, float: place / 7, bool: True, object: [place]}
    return {column.name: texts.get(column.name, made[column.type.python_type]) for column in table.columns}


def contents(path: Path) -> dict[str, list[dict[str, object]]]:
    """Every row of every table but alembic's own."""
    with sqlite3.connect(path) as connection:
        connection.row_factory = sqlite3.Row
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: [dict(row) for row in connection.execute(f'SELECT * FROM "{name}" ORDER BY 1, 2')]
            for name in names
            if name != "alembic_version"
        }


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
