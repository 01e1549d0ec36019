"""The machinery of the benches on tiny models: that a wrong, a failing or a missing side cannot pass unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.bench.gradients import of_draw
from tests.bench.record import FOLDER, Goal, Result, ratio
from tests.bench.report import write_page
from tests.bench.sides import Side, take_turns
from tests.bench.training.adapter import largest_difference
from tests.bench.training.goals import goals
from tests.bench.training.groups import TINY_GROUPS
from tests.bench.training.side import Worker

pytestmark = pytest.mark.filterwarnings("ignore")  # the rivals' own


def worker(side: str, folder: Path, ragged: bool) -> Worker:
    settings: dict[str, object] = TINY_GROUPS[ragged].settings(side, "cpu", str(folder))
    return Worker(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("ragged", [False, True])
def test_the_trainers_step_has_the_gradients_of_float32(tmp_path: Path, ragged: bool) -> None:
    ours, exact = worker("ours", tmp_path, ragged), worker("exact", tmp_path, ragged)
    found, wanted = ours.answer("gradients"), exact.answer("gradients")
    assert found["tensors"] == wanted["tensors"] == 2 * 7 * 2
    assert found["without_gradient"] == 0
    assert 0 < largest_difference(found["file"], wanted["file"]) < 0.05
    assert sum(ours.answer("steps", count=2, warmup=0)["tokens"]) == sum(
        exact.answer("steps", count=2, warmup=0)["tokens"]
    )


def test_a_wrong_gradient_is_seen(tmp_path: Path) -> None:
    exact = worker("exact", tmp_path, False)
    path = exact.answer("gradients")["file"]
    other = Worker(**(TINY_GROUPS[0].settings("exact", "cpu", str(tmp_path)) | {"length": 15}))  # type: ignore[arg-type]
    kept = Path(path).rename(tmp_path / "kept.safetensors")
    assert largest_difference(other.answer("gradients")["file"], str(kept)) > 0.05


@pytest.mark.parametrize("method", ["lora", "prompt", "p_tuning", "prefix", "bitfit", "velora"])
def test_the_exactness_of_a_method_has_a_figure(method: str, tmp_path: Path) -> None:
    found = of_draw(method, 2, tmp_path)
    assert 0 < found["float32"]["ours"] < 1e-5 < found["bfloat16"]["ours"] < 0.1
    assert all(row["repeats"] and not row["without_gradient"] for row in found.values())


def test_sides_take_turns_and_a_failing_one_costs_only_itself() -> None:
    good, bad = Side("tests.bench.echo", "good", a=1), Side("tests.bench.echo", "bad")
    assert good.wait(60) and bad.wait(60)
    found = take_turns([good, bad], 2, lambda side: side.ask(60, fail=side.label == "bad"))
    assert [answer["heard"] for answer in found["good"]] == [{"fail": False}] * 2
    assert "bad" not in found and "as asked" in bad.error
    good.end()


def test_a_side_that_cannot_start_says_why() -> None:
    side = Side("tests.bench.nowhere", "nowhere")
    assert side.wait(60) is None
    assert "nowhere" in side.error


def test_goals_are_met_missed_or_not_measured() -> None:
    rows = [
        {"group": "small", "side": "ours", "tokens_per_s": 100.0},
        {"group": "small", "side": "peft", "tokens_per_s": 25.0},
        {"group": "small", "side": "unsloth", "problem": "unsloth is not installed"},
    ]
    by_text = {goal.text: goal for goal in goals(rows)}
    peft, unsloth = (by_text[f"3: 135M shape, 8 x 512, against {rival}"] for rival in ("peft", "Unsloth"))
    assert (peft.measured, peft.is_met) == (4.0, False)
    assert (unsloth.measured, unsloth.is_met, unsloth.note) == (None, None, "unsloth is not installed")


def test_a_result_is_written_with_versions_and_machine(tmp_path: Path) -> None:
    result = Result("toy", "Toy", rows=[{"side": "ours", "ms": 1.0}], goals=[Goal("fast", 2.0, ratio(3.0, 1.0))])
    written = json.loads(result.publish(tmp_path).read_text(encoding="utf-8"))
    assert written["versions"]["torch"] == torch.__version__
    assert written["machine"]["cores"] and written["goals"][0]["is_met"] is True


def test_the_page_is_what_the_files_say(tmp_path: Path) -> None:
    for file in FOLDER.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert write_page(tmp_path).read_text() == (FOLDER / "README.md").read_text(), "run python -m tests.bench.report"
