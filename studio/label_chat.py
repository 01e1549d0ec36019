"""The Compare tab's answers for classifiers: the labels of the last message, with their probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import AdapterError, ModelError
from core.export.peft_config import WEIGHTS_NAME
from core.export.task_file import LabelFacts, labels_of_config, read_labels
from core.family import ENCODER, family_of
from core.model_config import read_config

NOTHING = "—"  # said by what has no labels


def wants_labels(request: Mapping[str, Any]) -> bool:
    """True when a pane is a classifier, or the model could be nothing else."""
    config = read_config(Path(request["model"]))
    folders = (Path(folder) for folder in request["adapters"] if folder is not None)
    is_classifier = family_of(config) == ENCODER or labels_of_config(config) is not None
    return is_classifier or any(read_labels(folder) is not None for folder in folders)


class LabelChat:
    """Classifiers of one base model: one loaded model for each set of labels."""

    def __init__(self) -> None:
        self._folder = ""
        self._loaded: dict[LabelFacts, tuple[Any, Any]] = {}

    def drop(self) -> None:
        """Free the models and their memory."""
        self._loaded.clear()

    def answer(self, request: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """The text of every pane, and the sha256 of the adapter it used ("" for the base).

        Raises ModelError when none of them has labels, so that nothing at all can be said.
        """
        if self._folder != request["model"]:
            self.drop()
            self._folder = request["model"]
        texts = [_last_message(turns) for turns in request["conversations"]]
        panes = zip(request["adapters"], texts, strict=True)
        said = [self._pane(folder, text) for folder, text in panes]
        if all(text == NOTHING for text in said):
            raise ModelError(
                "This model writes no texts, and it has no labels yet.",
                "Train it on texts with labels and ask the adapter, or pick a model that writes.",
            )
        return said, [digest(folder) for folder in request["adapters"]]

    def _pane(self, folder: str | None, text: str) -> str:
        from core.adapters import set_adapter
        from core.classifier import label_text

        base = Path(self._folder)
        facts = labels_of_config(read_config(base)) if folder is None else read_labels(Path(folder))
        if facts is None:
            return NOTHING
        model, tokenizer = self._model(facts)
        set_adapter(model, None if folder is None else self._adapter(model, folder))
        return label_text(model, tokenizer, text, facts.labels)

    def _model(self, facts: LabelFacts) -> tuple[Any, Any]:
        from core.classifier import load_classifier

        if facts not in self._loaded:
            made = load_classifier(self._folder, facts.labels, "auto", multi_label=facts.multi_label)
            self._loaded[facts] = made
        return self._loaded[facts]

    def _adapter(self, model: Any, folder: str) -> str:
        from core.adapters import adapter_names
        from core.export.peft import load_adapter

        name = f"adapter_{digest(folder)[:16]}"
        if name not in adapter_names(model):
            load_adapter(model, Path(folder), name=name)
        return name


def _last_message(turns: Sequence[Sequence[str]]) -> str:
    return next((text for role, text in reversed(turns) if role == "user"), "")


def digest(folder: str | None) -> str:
    """The sha256 of an adapter's file; "" for the base. Raises AdapterError when the file is gone."""
    if folder is None:
        return ""
    try:
        with (Path(folder) / WEIGHTS_NAME).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise AdapterError("The adapter's weights are gone.", "Pick another adapter, or train it again.") from None
