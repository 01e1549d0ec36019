"""Datasets of the hub: rows through the real `datasets` library, and its errors as sentences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.data.dataset import load_dataset
from core.data.hub_rows import fetch_rows
from core.errors import DatasetError

CODE = "from pathlib import Path; from core.data.hub_rows import fetch_rows; fetch_rows('owner/talks', Path('x'))"


def test_rows_arrive_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` treats a folder of data files as it treats a dataset of the hub."""
    folder = tmp_path / "owner" / "talks"
    folder.mkdir(parents=True)
    rows = [
        {"messages": [{"role": "user", "content": f"好 {n}"}, {"role": "assistant", "content": "b"}]} for n in range(7)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out.jsonl"
    assert fetch_rows("owner/talks", out) == 7
    assert [json.loads(line) for line in out.read_text("utf-8").splitlines()] == rows
    assert load_dataset(out).format == "messages"
    with pytest.raises(DatasetError, match="owner/talks"):
        fetch_rows("owner/talks", out, split="nonsense")
    monkeypatch.setattr("core.data.hub_rows.MAX_BYTES", 100)
    with pytest.raises(DatasetError, match="more than"):
        fetch_rows("owner/talks", out)


@pytest.mark.parametrize("hub_id", ["", "/etc", "../up", "a/b/c"])
def test_what_is_no_id_is_refused(tmp_path: Path, hub_id: str) -> None:
    with pytest.raises(DatasetError, match="on the hub"):
        fetch_rows(hub_id, tmp_path / "x")


def test_offline_says_so(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": root, "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "The hub could not be reached to fetch owner/talks. Check the connection" in done.stderr
