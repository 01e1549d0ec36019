"""`task.json` in an adapter's folder: the labels of a classifier, for which PEFT's files have no field. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import AdapterError
from core.model_config import architecture

TASK_NAME = "task.json"
MAX_TASK_BYTES = 4 << 20
MULTI_LABEL = "multi_label_classification"  # transformers' name for several labels a text
SINGLE_LABEL = "single_label_classification"


@dataclass(frozen=True)
class LabelFacts:
    """The labels that an adapter's head tells apart, in the order of its outputs."""

    labels: tuple[str, ...]
    multi_label: bool = False

    def config_values(self) -> dict[str, Any]:
        """The same as fields of a transformers config."""
        return {
            "id2label": {str(number): name for number, name in enumerate(self.labels)},
            "label2id": {name: number for number, name in enumerate(self.labels)},
            "problem_type": MULTI_LABEL if self.multi_label else SINGLE_LABEL,
        }


def labels_of_config(config: Mapping[str, Any]) -> LabelFacts | None:
    """The labels of a model that is a sequence classifier by itself; None for every other model."""
    names = config.get("id2label")
    if not architecture(config).endswith("ForSequenceClassification"):
        return None
    if not isinstance(names, Mapping) or not names or not all(key.isdecimal() for key in map(str, names)):
        return None
    ordered = tuple(str(names[key]) for key in sorted(names, key=int))
    return LabelFacts(ordered, config.get("problem_type") == MULTI_LABEL)


def write_task(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write what a task needs to be known of it; nothing when that is nothing."""
    if facts:
        text = json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / TASK_NAME).write_text(text + "\n", encoding="utf-8")


def read_labels(folder: Path) -> LabelFacts | None:
    """The labels of the adapter in a folder; None when it is no classifier. Raises AdapterError for a damaged file."""
    path = folder / TASK_NAME
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_TASK_BYTES:
            raise ValueError("it is larger than 4 MiB")
        values = json.loads(path.read_text(encoding="utf-8"))
        labels, multi = values["labels"], values["multi_label"]
        if not (isinstance(labels, list) and len(labels) > 1 and all(isinstance(name, str) for name in labels)):
            raise ValueError("its labels are not a list of names")
        return LabelFacts(tuple(labels), bool(multi))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdapterError(f"{TASK_NAME} of {folder.name!r} cannot be read: {error}.", "Train it again.") from None
