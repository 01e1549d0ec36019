"""Datasets as files: immutable versions, the same bytes again, several files, bad rows written out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.data.recipe import Recipe
from core.errors import DatasetError
from studio.dataset_files import MANIFEST, RECORDS, open_dataset, read_manifest
from studio.service import Studio

GOOD = {"prompt": "p", "completion": "c"}


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    made = Studio(tmp_path / "workspace")
    yield made
    made.close()


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def test_a_version_holds_files_rows_and_recipe(studio: Studio, tmp_path: Path) -> None:
    one = written(tmp_path / "one.jsonl", GOOD, {"prompt": "q", "completion": ""})
    two = written(tmp_path / "two.csv", "question,answer", "who?,me")
    recipe = Recipe(actions={"empty_answer": "skip"})
    view = studio.dataset_shelf.add([one, two], "both", recipe)
    folder = studio.workspace.dataset_folder(view.id)
    assert sorted(path.name for path in folder.iterdir()) == [
        "data-1.jsonl", "data-2.csv", "dataset.json", "records.index", "records.jsonl",
    ]  # fmt: skip
    assert (folder / "data-2.csv").read_bytes() == two.read_bytes()
    assert (view.rows, view.bad_rows, view.files) == (2, 1, ("one.jsonl", "two.csv"))
    assert view.format == "prompt_completion + question_answer" and view.counts == {"empty_answer": 1}
    manifest = read_manifest(folder)
    assert manifest and manifest.recipe == recipe.as_dict() and manifest.records_sha256 == view.records_sha256
    assert [row.file for row in studio.preview(view.id)] == ["one.jsonl", "two.csv"]
    # The same again is the same dataset; another recipe is another one, with its own rows.
    assert studio.dataset_shelf.add([one, two], "both", recipe).id == view.id
    fixed = Recipe(actions={"empty_answer": "fix", "no_assistant": "skip"})
    other = studio.dataset_shelf.add([one, two], "both", fixed)
    assert other.id != view.id and other.records_sha256 == view.records_sha256


def test_what_an_earlier_studio_filed_is_known(studio: Studio, tmp_path: Path) -> None:
    path = written(tmp_path / "one.jsonl", GOOD)
    view = studio.add_dataset(path)
    file = studio.workspace.dataset_folder(view.id) / MANIFEST
    manifest = json.loads(file.read_text("utf-8"))
    del manifest["recipe"]["encoding"]
    file.write_text(json.dumps(manifest), "utf-8")
    assert studio.add_dataset(path).id == view.id
    assert studio.dataset_shelf.add([path], path.stem, Recipe(encoding="gb18030")).id != view.id


def test_rows_that_were_changed_on_disk_are_not_trained_on(studio: Studio, tmp_path: Path) -> None:
    view = studio.add_dataset(written(tmp_path / "a.jsonl", GOOD))
    row = studio.dataset_shelf.library.dataset(view.id)
    folder = studio.workspace.dataset_folder(view.id)
    assert len(open_dataset(folder, row, verify=True)) == 1
    path = folder / RECORDS
    path.write_bytes(path.read_bytes().replace(b'"c"', b'"x"'))
    with pytest.raises(DatasetError, match="was changed"):
        open_dataset(folder, row, verify=True)


def test_a_refused_file_leaves_nothing_behind(studio: Studio, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", GOOD, "{broken")
    with pytest.raises(DatasetError, match=r"Line 2 of a\.jsonl"):
        studio.add_dataset(path)
    assert studio.datasets() == []
    assert list(studio.workspace.datasets.iterdir()) == [] and list(studio.workspace.tmp.iterdir()) == []


def test_rows_with_problems_are_written_out_as_they_stand(studio: Studio, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", GOOD, "{broken", GOOD, {"prompt": "q", "completion": "", "id": 9})
    out = tmp_path / "bad.jsonl"
    view = studio.dataset_shelf.inspect([path], Recipe(), out)
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [(row["row"], row["used"], row["problems"][0]["kind"]) for row in rows] == [
        (2, False, "bad_json"), (3, True, "duplicate"), (4, False, "empty_answer"),
    ]  # fmt: skip
    assert rows[0]["source"] == "{broken\n" and rows[2]["values"] == {"prompt": "q", "completion": "", "id": 9}
    assert view.counts == {"bad_json": 1, "duplicate": 1, "empty_answer": 1}


def test_columns_are_listed_with_a_sample(studio: Studio, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"item": {"q": "ask", "a": ["say"]}})
    found = studio.dataset_shelf.columns([path])
    assert found == {"item": '{"q": "ask", "a": ["say"]}', "item.q": "ask", "item.a": '["say"]', "item.a.0": "say"}


_MILLION = """
import json, random, resource, sys, time
from pathlib import Path
from core.data.recipe import Recipe
from studio.service import Studio
folder, rows = Path(sys.argv[1]), int(sys.argv[2])
draw, words = random.Random(0), [f"word{n}" for n in range(5000)]
path = folder / "big.jsonl"
with path.open("w") as file:
    for n in range(rows):
        said = {"user": 20, "assistant": 25}.items()
        turns = [{"role": role, "content": " ".join(draw.choices(words, k=count))} for role, count in said]
        file.write(json.dumps({"messages": turns}) + "\\n" if n % 1000 else "{broken\\n")
studio = Studio(folder / "workspace")
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, started = peak(), time.process_time()
view = studio.dataset_shelf.add([path], "big", Recipe().skipping_errors())
seconds = time.process_time() - started
shown = studio.preview(view.id, start=view.rows - 10)
sys.stdout.write(json.dumps({
    "rows": view.rows, "bad": view.bad_rows, "seconds": seconds, "memory": peak() - before,
    "file": path.stat().st_size / 2**20, "last": shown[-1].row}))
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_rows_in_bounded_memory(tmp_path: Path) -> None:
    code = [sys.executable, "-c", _MILLION, str(tmp_path), "1000000"]
    done = subprocess.run(code, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    figures = json.loads(done.stdout)
    sys.stdout.write(f"{figures}\n")
    assert (figures["rows"], figures["bad"], figures["last"]) == (999_000, 1000, 1_000_000)
    assert figures["memory"] < 450  # MiB; the file alone has that many, its rows as objects ten times as many
