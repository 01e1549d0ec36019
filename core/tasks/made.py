"""From the name of a task to the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from core.config import TrainConfig
from core.data.records import Record
from core.family import family_of
from core.tasks.choice import check_labels, choose_task
from core.tasks.classification import Classification
from core.tasks.completion import Completion
from core.tasks.preference import Preference
from core.tasks.question_answering import QuestionAnswering
from core.tasks.task import Task
from core.tasks.translation import Translation

KINDS: dict[str, type[Task]] = {
    kind.name: kind for kind in (Completion, Classification, QuestionAnswering, Translation, Preference)
}


def make_task(name: str, records: Sequence[Record], config: TrainConfig) -> Task:
    """The task called `name`, as these records need it.

    Raises DatasetError when they cannot be learned from, ConfigError when several labels are meant and there are none.
    """
    check_labels(name, config.data.multi_label)
    return KINDS[name].of(records, config)


def task_of(wanted: str, model: nn.Module, records: Sequence[Record], config: TrainConfig) -> Task:
    """The task of a loaded model: `wanted`, or with "auto" what the model is made for."""
    found: Any = getattr(model, "config", None)
    family = family_of(found.to_dict()) if hasattr(found, "to_dict") else "causal"
    format = "preference" if records and all(record.rejected for record in records) else ""
    return make_task(choose_task(wanted, family, format), records, config)
