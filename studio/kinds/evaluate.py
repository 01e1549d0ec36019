"""Measuring a base model and its adapters on a dataset: held-out loss, and answers against the expected ones.

Spec: {"model_id", "dataset_id", "adapter_ids": [...], "fields": ["product"], "batch_size": 20, "task": "auto"}.
Result: {"rows": 60, "task": ..., "scores": {"base": {"loss": ..., ...}, "<adapter_id>": {...}}}; all answers go to
`answers.json` of the job's folder. Answers are greedy, so the same job gives the same figures. The base is loaded
unquantised, also for adapters that were trained on a quantised one: all contestants share it. A classifier's labels are
those of its adapters, which must have the same; the base then has no head of its own and is left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config import DataConfig, TrainConfig
from core.data.records import Record
from core.errors import ConfigError, DatasetError
from core.export.task_file import LabelFacts, labels_of_config, read_labels
from core.model_config import read_config
from core.models import inspect_model
from core.scoring.answers import score
from core.tasks.choice import AUTO, CLASSIFICATION, choose_task
from studio.context import JobContext
from studio.dataset_files import open_dataset
from studio.files import write_atomically
from studio.kinds.kind import Outcome, job_kind

if TYPE_CHECKING:
    from core.scoring.scores import Answer
    from core.tasks.task import Task

BASE = "base"
BATCH_SIZE = 30
UNCUT = 1 << 20  # tokens, where the model knows no limit


@job_kind("evaluate")
def run(context: JobContext) -> Outcome:
    """Measure the base, then each adapter."""
    contest = _Contest(context)
    contest.load()
    names = [*([None] if contest.measures_base else []), *contest.adapters]
    context.say("Measuring", step=0, total_steps=len(names))
    scores, answers = {}, {}
    for done, name in enumerate(names, start=1):
        scores[name or BASE], answers[name or BASE] = contest.measure(name)
        context.advance(done, len(names))
    _write_answers(context, contest.records, answers)
    return Outcome({"rows": len(contest.records), "task": contest.task.name, "scores": scores})


def _write_answers(context: JobContext, records: Sequence[Record], answers: dict[str, Sequence[Answer]]) -> None:
    given = {name: [answer.given for answer in found] for name, found in answers.items()}
    asked = [record for record in records if record.messages and record.messages[-1].role == "assistant"]
    prompts = [[[message.role, message.content] for message in record.messages[:-1]] for record in asked]
    expected = [record.messages[-1].content for record in asked]
    everything = {"prompts": prompts, "expected": expected, "answers": given}
    write_atomically(context.folder / "answers.json", json.dumps(everything, ensure_ascii=False))


class _Contest:
    """What every contestant is measured with: the model, the rows, and the task."""

    def __init__(self, context: JobContext) -> None:
        spec = context.job.spec
        self.context = context
        self.adapters: list[str] = list(spec.get("adapter_ids") or [])
        self.fields: Sequence[str] = spec.get("fields") or ()
        self.rows = int(spec.get("batch_size") or BATCH_SIZE)
        self.folder = context.library.model_folder(context.library.model(spec["model_id"]))
        self.records, format = _records(context)
        self.labels = self._labels()
        wanted = CLASSIFICATION if self.labels else str(spec.get("task") or AUTO)
        name = choose_task(wanted, inspect_model(self.folder).family, format)
        if name == CLASSIFICATION and not self.labels:
            raise ConfigError("The base model has no labels.", "Pick adapters that were trained to classify.")
        self.task = self._task(name)
        self.measures_base = not self.labels or labels_of_config(read_config(self.folder)) == self.labels

    def _labels(self) -> LabelFacts | None:
        """The labels that all adapters, or the model itself, tell apart; None when they write texts."""
        found = [read_labels(self._adapter_folder(adapter_id)) for adapter_id in self.adapters]
        if not found:
            return labels_of_config(read_config(self.folder))
        if any(labels != found[0] for labels in found):
            raise ConfigError("The adapters have different labels or tasks.", "Evaluate them one by one.")
        return found[0]

    def _adapter_folder(self, adapter_id: str) -> Path:
        return self.context.library.adapter_folder(self.context.library.adapter(adapter_id))

    def _task(self, name: str) -> Task:
        from core.tasks.classification import Classification
        from core.tasks.made import make_task

        if self.labels is not None:
            return Classification(self.labels.labels, self.labels.multi_label)
        return make_task(name, self.records, TrainConfig())

    def load(self) -> None:
        """Load the model with every adapter, and tokenise the rows."""
        from core.export.peft import load_adapter

        self.context.say("Loading the model")
        self.model, self.tokenizer = self.task.load(self.folder, TrainConfig())
        for adapter_id in self.adapters:
            load_adapter(self.model, self._adapter_folder(adapter_id), name=adapter_id)
        context = int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 0) or 0)
        config = TrainConfig(data=DataConfig(validation_share=0.0, max_length=context or UNCUT), fast_path=False)
        self.task.bind(self.model, config)
        self.examples = self.task.prepare(self.records, self.tokenizer, config, context, None, 0).train

    def measure(self, name: str | None) -> tuple[dict[str, Any], Sequence[Answer]]:
        """The loss, the task's figures and the answers of one adapter, or of the base."""
        from core.adapters import set_adapter
        from core.prompt import virtual_ids
        from core.tasks.task import measure

        set_adapter(self.model, name)
        examples = [example.after(virtual_ids(self.model)) for example in self.examples]
        loss, found = measure(self.task, self.model, examples, int(self.tokenizer.pad_token_id or 0), self.rows)
        answered = self.task.answer(self.model, self.tokenizer, self.records, self.rows, self.context.glance)
        texts = [answer.expected for answer in answered.answers], [answer.given for answer in answered.answers]
        values = {**found.to_dict(), **found.values, **answered.values, **score(*texts, self.fields)}
        return {"loss": loss, **{key: value for key, value in values.items() if key != "values"}}, answered.answers


def _records(context: JobContext) -> tuple[tuple[Record, ...], str]:
    """The rows to measure with, and their format."""
    row = context.library.dataset(context.job.spec["dataset_id"])
    dataset = open_dataset(context.workspace.dataset_folder(row.id), row)
    if not dataset.records:
        raise DatasetError(f"{row.name} has no usable row.", "Pick another dataset.")
    return tuple(dataset.records), dataset.format
