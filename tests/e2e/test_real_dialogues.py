"""Real dialogues, English and Chinese, of the chatterbot corpus: uploaded, looked at as tokens, and trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.data.problems import ERROR, KINDS
from studio.service import Studio
from tests.e2e.conftest import RunningStudio
from tests.e2e.test_main_job import fill, open_page, open_tab, until

CASES = {"english": (2026, "0.12"), "chinese": (467, "0.5")}  # dialogues, epochs that make some thirty steps


def converted(folder: Path, language: str) -> list[str]:
    """The corpus' YAML files as JSON lines, each a list of alternating turns, under their own names."""
    import chatterbot_corpus

    source = Path(chatterbot_corpus.__file__).parent / "data" / language
    paths = []
    for file in sorted(source.glob("*.yml")):
        dialogues = yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]
        path = folder / f"{file.stem}.jsonl"
        lines = (json.dumps(turns, ensure_ascii=False) + "\n" for turns in dialogues)
        path.write_text("".join(lines), encoding="utf-8")
        paths.append(str(path))
    return paths


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("language", CASES)
def test_real_dialogues_train_through_the_page(page: Any, studio: RunningStudio, tmp_path: Path, language: str) -> None:
    dialogues, epochs = CASES[language]
    open_page(page, studio.url)
    open_tab(page, "Datasets")
    page.set_input_files("#dataset-file input[type=file]", converted(tmp_path, language))
    page.wait_for_function("document.querySelector('#dataset-add')?.innerText.includes('rows')", timeout=120_000)
    assert f"{dialogues:,} rows" in page.inner_text("#dataset-detected")
    assert "dialogues as lists" in page.inner_text("#dataset-detected")
    problems = page.inner_text("#dataset-problems")
    assert "duplicate" in problems
    page.click("#dataset-problems button[data-id=duplicate][data-action=skip]")
    page.wait_for_selector("#dataset-problems button[data-id=duplicate][data-action=skip][aria-pressed=true]")
    page.wait_for_function("document.querySelector('#dataset-add').innerText.includes('leave out')")
    fill(page, "dataset-name", language)
    page.click("#dataset-add")
    page.wait_for_function(
        f"document.querySelector('#datasets-table').innerText.includes('{language}')", timeout=120_000
    )

    # Tokens: what is green is what the assistant says.
    page.click("#dataset-view label >> nth=1")
    page.wait_for_selector("#dataset-preview .token-trained", timeout=180_000)
    assert "<|im_end|>" in "".join(page.locator("#dataset-preview .token-trained").all_inner_texts())
    assert page.locator("#dataset-lengths .length-bar").count() > 3

    page.click("#dataset-train")
    page.wait_for_selector("#train-start:not([disabled])")
    fill(page, "train-epochs", epochs)
    fill(page, "train-learning-rate", "0.001")
    page.click("#train-start")
    job = until(lambda: [one for one in studio.cli("jobs", "list")["jobs"] if one["name"] == language], 120.0)[0]
    until(lambda: studio.cli("jobs", "show", job["id"])["state"] not in ("queued", "running"), 900.0, 2.0)
    assert studio.cli("jobs", "show", job["id"])["state"] == "succeeded"
    opened = Studio(studio.workspace)
    try:
        losses = [point.value for point in opened.metrics(job["id"])["eval_loss"]]
        dataset = next(one for one in opened.datasets() if one.name == language)
    finally:
        opened.close()
    broken = sum(count for kind, count in dataset.counts.items() if KINDS[kind].level == ERROR)
    assert dataset.rows == dialogues - dataset.counts["duplicate"] - broken
    assert min(losses) < 0.9 * losses[0], losses
