"""The comparison's own machinery, on models of a few thousand weights: its numbers are worth what it is."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from tests.bench.comparison.claims import EVEN, HELD, NOT_HELD, UNKNOWN, Claim, verdict
from tests.bench.comparison.fleet import Fleet, read
from tests.bench.comparison.report import write_report
from tests.bench.comparison.runs import Bench
from tests.bench.comparison.search import SEEDS, Run, best_rate, counting, wanted
from tests.bench.comparison.summary import Row, Spread
from tests.bench.comparison.variants import VARIANTS
from tests.core.toy import toy_llama, toy_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model for each task."""
    made = {}
    for task, model in (("tickets", _llama()), ("sentiment", _bert())):
        made[task] = tmp_path_factory.mktemp(task)
        model.save_pretrained(made[task])
        toy_tokenizer().save_pretrained(made[task])
    return made


def _llama() -> Any:
    return toy_llama(hidden_size=64, intermediate_size=64, max_position_embeddings=1024)


def _bert() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=len(toy_tokenizer())))


def _shorten(bench: Bench, steps: int) -> None:
    bench.task.steps, bench.task.batch_size = steps, 2
    bench.task.records, bench.task.test = bench.task.records[:20], bench.task.test[:2]


def _run(rate: float, seed: int, loss: float) -> Run:
    return {"learning_rate": rate, "seed": seed, "validation_loss": loss}


def test_the_search_climbs_to_the_best_rate_and_then_runs_the_seeds() -> None:
    """A bowl with its bottom at 1e-2, entered at 1e-3: every neighbour of the best is tried, then three seeds there."""
    done: list[Run] = []
    asked = []
    while new := wanted("lora", done):
        asked += new
        done += [_run(rate, seed, abs(math.log10(rate) + 2)) for rate, seed in new]
    assert [rate for rate, seed in asked if seed == 0] == [1e-3, 3e-3, 1e-2, 3e-2]
    assert asked[-3:] == [(1e-2, seed) for seed in SEEDS]
    assert best_rate(done) == 1e-2
    assert len(counting(done)) == 3


def test_a_rate_that_diverges_is_never_the_best() -> None:
    """Infinite losses are turned away from, also at the edge of the grid."""
    done = [_run(1e-3, 0, math.inf), _run(3e-3, 0, math.inf), _run(3e-4, 0, 1.0)]
    assert wanted("lora", done) == [(1e-4, 0)]


def test_a_run_leaves_the_model_as_it_was(folders: dict[str, Path]) -> None:
    """Full fine-tuning and LoRA on one loaded model: the second LoRA run equals the first."""
    bench = Bench("tickets", folders["tickets"], "cpu")
    _shorten(bench, 4)
    first = bench.run("lora", 1e-2, 1)
    bench.run("full", 1e-2, 1)
    again = bench.run("lora", 1e-2, 1)
    assert first | {"seconds": 0} == again | {"seconds": 0}
    assert first["bytes"] > 4 * first["parameters"] > 0
    assert bench.cost("lora", 4)["peak_memory_bytes"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("task", ["tickets", "sentiment"])
def test_every_variant_runs(task: str, folders: dict[str, Path]) -> None:
    """Each variant trains a few steps and is measured."""
    bench = Bench(task, folders[task], "cpu")
    _shorten(bench, 8)
    for name, variant in VARIANTS.items():
        if task in variant.tasks:
            run = bench.run(name, 1e-3, 1)
            assert math.isfinite(run["loss"]), name
            assert run["bytes"] > 0, name


@pytest.mark.slow
def test_a_fleet_goes_on_where_it_was(folders: dict[str, Path], tmp_path: Path) -> None:
    """Stopped at once it has begun little; started again it does the rest, once."""
    file = tmp_path / "sentiment.jsonl"
    Fleet("sentiment", folders["sentiment"], "cpu", 1).train(["lora"], file, time.time() + 0.1)
    begun = read(file)
    Fleet("sentiment", folders["sentiment"], "cpu", 1).train(["lora"], file, math.inf)
    runs = read(file)
    assert len(begun) < len(runs)
    assert len({json.dumps([run["learning_rate"], run["seed"]]) for run in runs}) == len(runs)
    assert wanted("lora", runs) == []


def _row(variant: str, *losses: float, parameters: int = 100) -> Row:
    return Row("tickets", variant, variant, 1e-3, parameters, 400, {"loss": Spread(losses)})


def test_a_claim_is_judged_by_the_spread_of_the_seeds() -> None:
    """Apart by more than two standard errors either way, or not; and costs against their bound."""
    rows = {
        "lora": _row("lora", 1.0, 1.1, 0.9),
        "full": _row("full", 0.5, 0.6, 0.4),
        "dora": _row("dora", 1.0, 1.2, 0.9),
    }
    rows["vera"] = _row("vera", 2.0, 2.1, 1.9, parameters=10)
    said = {
        Claim("", "full", "lora"): HELD,
        Claim("", "lora", "full"): NOT_HELD,
        Claim("", "lora", "full", "as good"): NOT_HELD,
        Claim("", "dora", "lora"): EVEN,
        Claim("", "dora", "lora", "as good"): HELD,
        Claim("", "vera", "lora", "worse"): HELD,
        Claim("", "vera", "lora", "parameters", 0.1): HELD,
        Claim("", "vera", "lora", "parameters", 0.05): NOT_HELD,
        Claim("", "vera", "lora", "step_seconds"): UNKNOWN,
        Claim("", "rslora", "lora"): UNKNOWN,
    }
    assert {claim: verdict(claim, rows)[0] for claim in said} == said


def test_the_report_tells_what_is_finished_and_what_is_not(tmp_path: Path) -> None:
    """Two variants of one task are done, one has no seed yet; the page has tables and well-formed pictures."""
    quality = {"valid_json": 1.0, "named_fields": 0.5, "exact_match": 0.25, "bytes": 4096, "parameters": 1000}
    runs = [
        {"task": "tickets", "variant": variant, "learning_rate": 1e-3, "seed": seed, "validation_loss": loss}
        | ({"loss": loss + seed / 100} | quality if seed else {})
        for variant, loss in (("lora", 0.5), ("vera", 0.7))
        for seed in (0, *SEEDS)
    ]
    runs.append({"task": "tickets", "variant": "dora", "learning_rate": 1e-3, "seed": 0, "validation_loss": 0.5})
    (tmp_path / "tickets.jsonl").write_text("\n".join(map(json.dumps, runs)))
    write_report(tmp_path, tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "| LoRA | 0.520 ± 0.010 | 100.0 ± 0.0 % |" in page
    assert page.index("| LoRA |") < page.index("| VeRA |")
    assert "DoRA" in page.partition("Not finished: ")[2].partition("\n")[0]
    assert "VeRA is as good as LoRA (VeRA) | **did not hold**" in page
    for picture in ("tickets.svg", "tickets-size.svg"):
        assert len(ElementTree.parse(tmp_path / picture).getroot()) > 4
