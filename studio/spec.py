"""A job's specification as YAML: what the page saves, the CLI runs, and a colleague can rerun."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from core.config import TrainConfig, from_dict, to_dict
from core.errors import ConfigError
from core.setting import shown

_KEYS = ("name", "model", "dataset", "train")
_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: a date or a number that is none


class _Loader(yaml.SafeLoader):
    """Takes 1e-4 for a number, as YAML 1.2 does and everybody who writes a learning rate."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def to_yaml(name: str, model: str, dataset: str, config: TrainConfig) -> str:
    """Write a training job as YAML, every setting spelled out so that later defaults cannot change it."""
    spec = {"name": name, "model": model, "dataset": dataset, "train": to_dict(config)}
    return str(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))


def from_yaml(text: str) -> dict[str, Any]:
    """Read what `to_yaml` wrote; `train` becomes a TrainConfig. ConfigError on anything unknown or out of range."""
    try:
        spec = yaml.load(text, Loader=_Loader)
    except _UNREADABLE as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f" at line {line + 1}" if line is not None else ""
        raise ConfigError(
            f"The job file is not valid YAML{where}.", "Compare it with one that the studio saved."
        ) from None
    if not isinstance(spec, Mapping):
        raise ConfigError("The job file holds no settings.", "Save one from the Train tab to see the form.")
    unknown = [str(key) for key in spec if key not in _KEYS]
    if unknown:
        raise ConfigError(f"The job file has the unknown entry {unknown[0]!r}.", f"Known: {', '.join(_KEYS)}.")
    train = {} if spec.get("train") is None else spec["train"]
    if not isinstance(train, Mapping):
        raise ConfigError(f"train is {shown(train)}.", "Write names, each with its value.")
    return {key: _text(key, spec.get(key)) for key in _KEYS[:3]} | {"train": from_dict(TrainConfig, train)}


def read_value(text: str) -> Any:
    """The value of one setting, written as in a job file; ConfigError when it cannot be read."""
    try:
        return yaml.load(text, Loader=_Loader)
    except _UNREADABLE:
        raise ConfigError(f"{shown(text)} cannot be read.", "Write a number, a word, or [a, list].") from None


def _text(key: str, value: Any) -> str:
    """A name; people also write numbers as names."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ConfigError(f"{key} is {shown(value)}, which is not a text.", "Write a name, in quotes if need be.")
    return str(value)
