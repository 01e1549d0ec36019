"""Loading, inspecting, skipping, and the warnings of rows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from core.data.dataset import load_dataset
from core.errors import DatasetError

SAMPLES = {
    "support_tickets.jsonl": ("messages", 300),
    "support_tickets_heldout.jsonl": ("messages", 60),
    "sentiment.csv": ("text_label", 400),
    "sentiment_wry.csv": ("text_label", 400),
    "dialogues_zh.jsonl": ("messages", 150),
    "translation_en_fr.tsv": ("source_target", 200),
    "qa.json": ("question_answer", 150),
    "preferences.jsonl": ("preference", 95),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_sample_datasets(samples: Path, name: str) -> None:
    dataset = load_dataset(samples / name)
    format, least = SAMPLES[name]
    assert (dataset.format, dataset.share, dataset.problems) == (format, 1.0, ())
    assert len(dataset) >= least
    assert dataset.sha256 == hashlib.sha256((samples / name).read_bytes()).hexdigest()


def test_the_rows_of_a_json_list_are_the_lines_of_an_editor(samples: Path) -> None:
    lines = (samples / "qa.json").read_text(encoding="utf-8").split("\n")
    for record in load_dataset(samples / "qa.json").records:
        assert lines[record.row - 1].strip() == "{"


GOOD = '{"prompt": "p%d", "completion": "c"}\n'


def write(folder: Path, text: str, name: str = "train.jsonl") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_first_error_stops_and_says_how_many_more(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD % 1 + "\n" + '{"prompt": "p"\n' + GOOD % 2 + '{"prompt": "p", "completion": ""}\n')
    with pytest.raises(DatasetError) as caught:
        load_dataset(path)
    assert caught.value.what.startswith("Line 3 of train.jsonl: ")
    assert caught.value.what.endswith(" Rows with errors in all: 2.")
    assert caught.value.fix == "Fix the line, or skip bad rows."
    dataset = load_dataset(path, skip_bad_rows=True)
    assert [record.row for record in dataset.records] == [1, 4]
    assert [(problem.row, problem.kind) for problem in dataset.problems] == [(3, "bad_json"), (5, "empty_answer")]


def test_many_errors_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD % 1 + '{"prompt": "p", "completion": ""}\n' * 1205)
    with pytest.raises(DatasetError, match="Rows with errors in all: 1,205"):
        load_dataset(path)


def test_warnings_do_not_stop(tmp_path: Path) -> None:
    token = "hf_" + "a" * 34
    rows = [
        {"text": "one"},
        {"text": "one"},
        {"text": "bell \x07"},
        {"text": "x" * 60_000},
        {"text": f"my key is {token}"},
        {"text": "-----BEGIN RSA PRIVATE KEY-----"},
    ]
    dataset = load_dataset(write(tmp_path, "\n".join(json.dumps(row) for row in rows)))
    assert len(dataset) == 6
    assert [(problem.row, problem.kind, problem.level) for problem in dataset.problems] == [
        (2, "duplicate", "warning"),
        (3, "control_characters", "warning"),
        (4, "over_long", "warning"),
        (5, "suspected_secret", "warning"),
        (6, "suspected_secret", "warning"),
    ]
    assert "row 1" in dataset.problems[0].detail
    assert "U+0007" in dataset.problems[1].detail and "\x07" not in dataset.problems[1].excerpt
    assert "a Hugging Face token" in dataset.problems[3].detail
    assert all(token not in problem.excerpt + problem.detail for problem in dataset.problems)
    assert all(len(problem.excerpt) < 100 for problem in dataset.problems)


SECRETS = ["hf_" + "a" * 34, "sk-proj-" + "b" * 24, "sk-ant-" + "c" * 24, "ghp_" + "d" * 36, "github_pat_" + "e" * 40,
           "AKIA" + "F" * 16, "AIza" + "g" * 35, "xoxb-" + "1" * 12, "-----BEGIN PRIVATE KEY-----"]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_suspected_and_not_shown(tmp_path: Path, secret: str) -> None:
    row = {"prompt": f"My key is {secret}, keep it.", "completion": "Thanks"}
    problems = load_dataset(write(tmp_path, json.dumps(row))).problems
    assert [problem.kind for problem in problems] == ["suspected_secret"]
    assert secret not in problems[0].excerpt + problems[0].detail


def test_ordinary_words_are_no_secrets(tmp_path: Path) -> None:
    rows = [{"text": "sk-learn is a library; hf_hub_download is a function; task-1234"}, {"text": "Tab\tand\nline"}]
    assert load_dataset(write(tmp_path, "\n".join(json.dumps(row) for row in rows))).problems == ()


def test_a_question_at_the_end_is_left_out_with_a_warning(tmp_path: Path) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    assert [problem.kind for problem in load_dataset(write(tmp_path, json.dumps(row))).problems] == ["unanswered"]


def test_a_file_of_bad_rows_only_is_refused_even_when_they_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path, "{broken\n" * 3)
    for skip in (False, True):
        with pytest.raises(DatasetError, match=r"None of the first 3 rows of train\.jsonl can be read.*Line 1"):
            load_dataset(path, skip_bad_rows=skip)


def test_rows_of_parquet_are_called_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"] * 70 + [""], "label": ["b"] * 71}), path)
    with pytest.raises(DatasetError, match=r"Row 71 of x\.parquet"):
        load_dataset(path)
