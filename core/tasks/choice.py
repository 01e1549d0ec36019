"""Which task a model learns from a dataset, and which tasks do not fit, told before anything is loaded. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import ConfigError
from core.family import CAUSAL, ENCODER, SEQ2SEQ

AUTO = "auto"
COMPLETION, CLASSIFICATION = "completion", "classification"
QUESTION_ANSWERING, TRANSLATION, PREFERENCE = "question_answering", "translation", "preference"


@dataclass(frozen=True)
class TaskInfo:
    """A task as a form or a sentence needs it."""

    sentence: str  # what the model does in the end
    families: tuple[str, ...]  # of models that can learn it
    formats: tuple[str, ...] = ()  # of datasets that it needs; empty where any with answers will do
    rate_factor: float = 1.0  # its usual learning rate, in that of completion
    grace_epochs: int = 1  # without a better measurement before a run may stop early
    forwards: int = 1  # texts that a row puts through the model


TASKS: dict[str, TaskInfo] = {
    COMPLETION: TaskInfo("The model learns to continue texts and chats.", (CAUSAL,)),
    CLASSIFICATION: TaskInfo(
        "The model learns to label texts.", (ENCODER, CAUSAL, SEQ2SEQ), grace_epochs=2
    ),  # a new head waits
    QUESTION_ANSWERING: TaskInfo("The model learns to answer, sequence to sequence.", (SEQ2SEQ,)),
    TRANSLATION: TaskInfo("The model learns to translate, sequence to sequence.", (SEQ2SEQ,)),
    PREFERENCE: TaskInfo(
        "The model learns to prefer the better of two answers (DPO).", (CAUSAL,), ("preference",), 0.1, forwards=2
    ),
}
NAMES = (AUTO, *TASKS)
_BY_FORMAT = {  # what is meant by a dataset of that format where the model can learn it
    "preference": PREFERENCE,
    "source_target": TRANSLATION,
}
_USUAL = {CAUSAL: COMPLETION, ENCODER: CLASSIFICATION, SEQ2SEQ: QUESTION_ANSWERING}  # for all other datasets


def choose_task(wanted: str, family: str, format: str) -> str:
    """The task to train: the one that is wanted, or else what the dataset's format and the model's family mean.

    `format` is the name of the dataset's format, empty when it is not known. Raises ConfigError, in a sentence, when
    model, dataset and task do not fit together.
    """
    fitting = _BY_FORMAT.get(format, "")
    is_meant = bool(fitting) and (family in TASKS[fitting].families or format in TASKS[fitting].formats)
    name = (fitting if is_meant else _USUAL[family]) if wanted == AUTO else wanted
    task = TASKS[name]
    if family not in task.families:
        able = ", ".join(known for known, info in TASKS.items() if family in info.families)
        raise ConfigError(
            f"A model of the family {family!r} cannot learn the task {name!r}.",
            f"Pick another model, or a task of: {able}.",
        )
    if task.formats and format not in (*task.formats, ""):
        raise ConfigError(
            f"The dataset is {format!r}, and the task {name!r} needs {', '.join(map(repr, task.formats))}.",
            "Pick another dataset or task.",
        )
    if wanted == AUTO and name == CLASSIFICATION and format not in ("text_label", ""):
        raise ConfigError(
            f"An encoder writes no text, it can only give labels, and the dataset is {format!r}.",
            "Pick a dataset of texts and labels, or set task to classification when its answers are labels.",
        )
    return name


def check_labels(task: str, multi_label: bool) -> None:
    """Raise ConfigError when a task without labels is told that texts have several."""
    if multi_label and task != CLASSIFICATION:
        raise ConfigError(
            f"multi_label is for texts with labels, and the task is {task!r}.",
            "Turn multi_label off, or set task to classification.",
        )
