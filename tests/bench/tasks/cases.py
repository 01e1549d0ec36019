"""The runs: a base model, its rows to train on and to test on, and the settings, all through the studio's own jobs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig
from tests.bench.comparison.tasks import CACHE, DATASETS, minilm, starter
from tests.bench.tasks.pretrain import MINUTES, WORKERS, pretrain
from tests.bench.tasks.texts import gather

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Case:
    """A run for every seed; one row in some is kept out of it and measured in an evaluation job afterwards."""

    model: Callable[[], Path]
    rows: Callable[[], Rows]
    figures: tuple[str, ...]
    config: TrainConfig
    test_every: int = 4  # of the rows, one in so many is tested on
    seeds: tuple[int, ...] = (42,)


def sentiment() -> Rows:
    """Ordinary reviews and whether they are positive."""
    return _csv("sentiment.csv")


def wry() -> Rows:
    """Reviews whose judgement stands between the lines."""
    return _csv("sentiment_wry.csv")


def _csv(name: str, delimiter: str = ",") -> Rows:
    with (DATASETS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def questions() -> Rows:
    """Questions about a passage that stands above them."""
    found: Rows = json.loads((DATASETS / "qa.json").read_text(encoding="utf-8"))
    return found


def translations() -> Rows:
    """English sentences with their French."""
    return _csv("translation_en_fr.tsv", "\t")


def preferences() -> Rows:
    """Prompts with a better and a worse answer."""
    return [json.loads(line) for line in (DATASETS / "preferences.jsonl").read_text(encoding="utf-8").splitlines()]


def pretrained(kind: str) -> Path:
    """A small model of a kind, pretrained once."""
    folder = CACHE / f"tiny-{kind}"
    return folder if (folder / "config.json").exists() else pretrain(kind, folder, MINUTES, gather(), WORKERS)


def _config(rate: float, epochs: float, r: int = 16, **more: Any) -> TrainConfig:
    return TrainConfig(
        adapter=AdapterConfig(r=r, lora_alpha=2.0 * r), optim=OptimConfig(learning_rate=rate),
        data=DataConfig(validation_share=0.1), epochs=epochs, **more,
    )  # fmt: skip


_HEAD = AdapterConfig(method="partial", method_options={"part": "head"})
_HEAD_ONLY = TrainConfig(adapter=_HEAD, optim=OptimConfig(learning_rate=1e-2), epochs=10)
_LABELS = ("accuracy", "macro_f1")
_SEEDS = (42, 43, 44)
CASES: Mapping[str, Case] = {
    "sentiment": Case(minilm, sentiment, _LABELS, TrainConfig(), 3, _SEEDS),  # as a new user starts it
    "sentiment-head": Case(minilm, sentiment, _LABELS, _HEAD_ONLY, 3, _SEEDS),
    "wry": Case(minilm, wry, _LABELS, TrainConfig(epochs=8), 3, _SEEDS),
    "wry-head": Case(minilm, wry, _LABELS, _HEAD_ONLY, 3, _SEEDS),
    "qa-t5": Case(
        lambda: pretrained("t5"), questions, ("token_f1", "exact_match"), _config(1e-3, 10, 32), seeds=_SEEDS
    ),
    "qa-bart": Case(
        lambda: pretrained("bart"), questions, ("token_f1", "exact_match"), _config(1e-3, 10, 32), seeds=_SEEDS
    ),
    "translation-t5": Case(
        lambda: pretrained("t5"), translations, ("chrf", "bleu"), _config(1e-3, 10, 32), seeds=_SEEDS
    ),
    "translation-bart": Case(
        lambda: pretrained("bart"), translations, ("chrf", "bleu"), _config(1e-3, 10, 32), seeds=_SEEDS
    ),
    "preference": Case(
        starter, preferences, ("preference_accuracy", "preference_margin"), _config(2e-4, 3, batch_size=8)
    ),
}


def divided(rows: Sequence[dict[str, str]], every: int) -> tuple[Rows, Rows]:
    """Rows to train on and to test on; rows about the same passage stay on one side."""
    groups = list(dict.fromkeys(row.get("context") or str(number) for number, row in enumerate(rows)))
    tested = {group for number, group in enumerate(groups) if number % every == every - 1}
    sides: tuple[Rows, Rows] = ([], [])
    for number, row in enumerate(rows):
        sides[(row.get("context") or str(number)) in tested].append(row)
    return sides
