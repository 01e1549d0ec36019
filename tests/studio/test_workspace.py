import os
import re
import stat
import time
from pathlib import Path

import pytest

from studio import workspace as module
from studio.workspace import Workspace, WorkspaceError, checked_id, default_root, new_id


def test_everything_is_private(tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        workspace = Workspace.open(tmp_path / "a b #%é")
    finally:
        os.umask(previous)
    for folder in (workspace.root, *workspace.folders):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_open_workspace_is_closed_to_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert stat.S_IMODE(Workspace.open(tmp_path).root.stat().st_mode) == 0o700


def test_a_root_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match=r"cannot be used.*--workspace"):
        Workspace.open(tmp_path / "file" / "below")


def test_the_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("LORA_STUDIO_HOME")
    assert default_root().name == "lora-studio"


@pytest.mark.parametrize("kind", ["nfs4", "cifs"])
def test_a_network_drive_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_file_system", lambda path: kind)
    with pytest.raises(WorkspaceError, match="network drive"):
        Workspace.open(tmp_path)


def test_ids_are_safe_unique_and_sort_by_age() -> None:
    early = new_id()
    time.sleep(0.003)
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(re.fullmatch(r"[0-9a-z]{14}", value) and early < value for value in ids)
    assert ids == sorted(ids)
    assert checked_id(early) == early


def test_ids_sort_by_age_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_id()
    monkeypatch.setattr("studio.workspace.time.time", lambda: 0.0)
    assert before < new_id() < new_id()


@pytest.mark.parametrize(
    "value", ["", "..", "../" * 4 + "ab", "a" * 13, "a" * 15, "A" * 14, "/etc/passwd/aa", "aaaaaaaaaaaa\n"]
)
def test_what_is_no_id_never_becomes_a_path(value: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for place in (workspace.run_folder, workspace.model_folder, workspace.adapter_folder, workspace.dataset_folder):
        with pytest.raises(WorkspaceError, match="not an id"):
            place(value)


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "w")
    (workspace.models / "out").symlink_to(tmp_path)
    assert workspace.inside(workspace.models / "in") == (workspace.models / "in").resolve()
    for path in (workspace.models / "out" / "x", workspace.root / ".." / "x"):
        with pytest.raises(WorkspaceError):
            workspace.inside(path)


def test_discard_removes_a_folder_and_forgives_a_missing_one(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    folder = workspace.model_folder(new_id())
    folder.mkdir()
    (folder / "weights").write_text("x")
    workspace.discard(folder)
    workspace.discard(folder)
    assert not folder.exists()
    assert list(workspace.tmp.iterdir()) == []


def test_discard_does_not_follow_a_link(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "w")
    outside = tmp_path / "outside"
    outside.mkdir()
    link = workspace.model_folder(new_id())
    link.symlink_to(outside)
    workspace.discard(link)
    assert outside.is_dir()
