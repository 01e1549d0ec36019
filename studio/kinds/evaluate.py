"""Measuring a base model and its adapters on a dataset: held-out loss, and answers against the expected ones.

Spec: {"model_id": ..., "dataset_id": ..., "adapter_ids": [...], "fields": ["product"], "batch_size": 20}.
Result: {"rows": 60, "scores": {"base": {"loss": ..., ...}, "<adapter_id>": {...}}}; all answers go to `answers.json` of
the job's folder. Answers are greedy, so the same job gives the same figures. The base is loaded unquantised, also for
adapters that were trained on a quantised one: all contestants share it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.config import GenerationConfig
from core.data.records import Message, Record
from core.errors import DatasetError
from core.scoring.answers import score
from studio.context import JobContext
from studio.files import write_atomically
from studio.kinds.kind import Outcome, job_kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASE = "base"
BATCH_SIZE = 30
ROOM = 1.25  # times the longest expected answer is where an answer is cut


@dataclass(frozen=True)
class Task:
    """What every contestant gets: the conversations to answer, and the answers that are expected."""

    records: tuple[Record, ...]
    prompts: tuple[tuple[Message, ...], ...]
    expected: tuple[str, ...]
    batch_size: int

    def batches(self) -> Iterator[tuple[tuple[Message, ...], ...]]:
        """The prompts in order, some at a time."""
        for start in range(0, len(self.prompts), self.batch_size):
            yield self.prompts[start : start + self.batch_size]


@job_kind("evaluate")
def run(context: JobContext) -> Outcome:
    """Measure the base, then each adapter."""
    from core.export.peft import load_adapter
    from core.models import load_model

    spec = context.job.spec
    adapters: list[str] = list(spec.get("adapter_ids") or [])
    task = _task(context)
    context.say("Loading the model")
    model, tokenizer = load_model(context.library.model_folder(context.library.model(spec["model_id"])))
    for adapter_id in adapters:
        folder = context.library.adapter_folder(context.library.adapter(adapter_id))
        load_adapter(model, folder, name=adapter_id)
    steps = _Steps(context, len([BASE, *adapters]) * (1 + len(list(task.batches()))))
    scores: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    for name in (None, *adapters):
        key = name or BASE
        loss = _loss(model, tokenizer, task, name)
        steps.advance()
        answers[key] = _answers(model, tokenizer, task, name, steps)
        scores[key] = {"loss": loss, **score(task.expected, answers[key], spec.get("fields") or ())}
    prompts = [[[message.role, message.content] for message in prompt] for prompt in task.prompts]
    everything = {"prompts": prompts, "expected": task.expected, "answers": answers}
    write_atomically(context.folder / "answers.json", json.dumps(everything, ensure_ascii=False))
    return Outcome({"rows": len(task.records), "scores": scores})


class _Steps:
    """Counts the finished parts of the work; the job can give way between two of them."""

    def __init__(self, context: JobContext, total: int) -> None:
        self.context, self.done, self.total = context, 0, total
        context.say("Measuring", step=0, total_steps=total)

    def advance(self) -> None:
        self.done += 1
        self.context.advance(self.done, self.total)


def _task(context: JobContext) -> Task:
    from core.data.dataset import load_dataset

    row = context.library.dataset(context.job.spec["dataset_id"])
    records = load_dataset(context.library.dataset_file(row), row.format, row.skip_bad_rows).records
    if not records:
        raise DatasetError(f"{row.name} has no usable row.", "Pick another dataset.")
    asked = [record for record in records if record.messages and record.messages[-1].role == "assistant"]
    return Task(
        tuple(records),
        tuple(record.messages[:-1] for record in asked),
        tuple(record.messages[-1].content for record in asked),
        int(context.job.spec.get("batch_size") or BATCH_SIZE),
    )


def _loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, name: str | None) -> float:
    from core.adapters import set_adapter
    from core.data.template import tokenize_all
    from core.evaluate import evaluate_loss

    set_adapter(model, name)
    return evaluate_loss(model, tokenize_all(task.records, tokenizer), tokenizer.pad_token_id or 0)


def _answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, name: str | None, steps: _Steps
) -> Sequence[str]:
    from core.generate import generate

    longest = max((len(tokenizer(text)["input_ids"]) for text in task.expected), default=0)
    config = GenerationConfig(max_new_tokens=max(1, int(longest * ROOM) + 2), temperature=0.0)
    made: list[str] = []
    for batch in task.batches():
        made += generate(model, tokenizer, batch, [name] * len(batch), config)
        steps.advance()
    return made
