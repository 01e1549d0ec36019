"""The comparison's own machinery, on models of a few thousand weights: its numbers are worth what it is."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from tests.bench.comparison.fleet import Fleet, read
from tests.bench.comparison.runs import Bench
from tests.bench.comparison.search import SEEDS, Run, best_rate, counting, wanted
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
