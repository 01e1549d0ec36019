"""Settings that are left to be picked, where they follow from the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from core.config import TrainConfig
from core.methods import methods
from core.tasks.choice import TASKS
from core.tasks.task import Task


def with_learning_rate(config: TrainConfig, model: nn.Module, task: Task) -> TrainConfig:
    """The config with the learning rate filled in, when it is left to be picked."""
    if config.optim.learning_rate:
        return config
    rate = methods.get(config.adapter.method).learning_rate(_fact(model, "hidden_size"), config.adapter)
    rate *= TASKS[task.name].rate_factor
    optim = replace(config.optim, learning_rate=rate)
    return replace(config, optim=optim)


def context_length(model: nn.Module) -> int:
    """Most tokens the model takes, 0 when its config does not say."""
    return _fact(model, "max_position_embeddings")


def _fact(model: nn.Module, name: str) -> int:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, name, 0) or 0)
