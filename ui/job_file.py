"""A job's settings on their way into the Train form: from a job file, or from a job that is to be run again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from core.config import TrainConfig
from core.errors import ConfigError
from studio.service import Studio
from ui.forms import config_from, values_from
from ui.fragments import esc
from ui.handlers import tell
from ui.i18n import Translator

FILE_TYPES = [".yaml", ".yml"]
_MAX_BYTES = 2**20


def draft_of(config: TrainConfig, dataset: str, model: str, name: str) -> dict[str, Any]:
    """The Train form's draft with the settings of a training."""
    targets = config.adapter.target_modules
    return {
        "dataset": dataset, "model": model, "name": name,
        "targets": None if isinstance(targets, str) else list(targets), "values": values_from(config),
    }  # fmt: skip


def draft_of_file(
    studio: Studio, path: str, chosen: Sequence[str | None], t: Translator
) -> tuple[dict[str, Any], TrainConfig]:
    """The draft of an uploaded job file, and its settings; dataset and model are found by id, or else by name.

    Those that are `chosen` stay where the file names none.

    Raises ConfigError for what is no job file, and WorkspaceError for a file that was not uploaded.
    """
    file = studio.workspace.uploaded(Path(path))
    if file.stat().st_size > _MAX_BYTES:
        raise ConfigError(t("train.file_large", name=file.name), t("train.file_large_fix"))
    spec = studio.parse_spec_yaml(file.read_text(encoding="utf-8", errors="replace"))
    datasets = {key: item.id for item in reversed(studio.datasets()) for key in (item.name, item.id)}
    models = {key: item.id for item in reversed(studio.models()) for key in (item.name, item.id)}
    for kind, known in (("dataset", datasets), ("model", models)):
        if spec[kind] and spec[kind] not in known:
            raise ConfigError(t(f"train.no_such_{kind}", name=spec[kind]), t("train.no_such_fix"))
    config: TrainConfig = spec["train"]
    dataset, model = datasets.get(spec["dataset"], chosen[0]), models.get(spec["model"], chosen[1])
    return draft_of(config, dataset or "", model or "", spec["name"]), config


def tell_loaded(config: TrainConfig, t: Translator) -> None:
    """A toast on the filled form; it names the settings that the form has no field for and so leaves out."""
    missing = without_field(config)
    if missing:
        gr.Warning(esc(t("train.loaded_partly", names=", ".join(missing))), title=t("level.warning"))
    else:
        tell(t("train.loaded"), t)


def without_field(config: TrainConfig) -> list[str]:
    """Settings that differ from their defaults and that the form cannot hold, such as ranks by pattern."""
    targets = config.adapter.target_modules
    pattern = isinstance(targets, str) and targets != "all-linear"
    held = config_from(values_from(config), "all-linear" if pattern else targets).adapter
    names = (field.name for field in dataclasses.fields(held))
    return [name for name in names if getattr(held, name) != getattr(config.adapter, name)]
