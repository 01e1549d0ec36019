"""What a method does in a training step beside following the gradient: regularise, mask, take snapshots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from core.adapters.base import Adapter
    from core.config import AdapterConfig


class TrainingRule:
    """The rule of a method without one: nothing beside the gradient step.

    The trainer calls the hooks in the order of the methods below, each once per optimizer step, accumulation or not.
    A step that is skipped calls none of them.
    """

    def __init__(self, adapters: Mapping[str, Adapter], config: AdapterConfig, total_steps: int) -> None:
        self.adapters = adapters  # by the path of their module
        self.config = config
        self.total_steps = total_steps
        self.sample: Callable[[], None] = _nothing  # runs the model over a sample of rows: no gradient, no dropout
        self.reconfigure: Callable[[AdapterConfig], None] = _keep  # tells the model's record of a changed config

    @property
    def is_plain(self) -> bool:
        """Whether updates are the optimizer's alone."""
        return type(self) is TrainingRule

    def regularizer(self) -> Tensor | None:
        """A scalar added to the mean loss of step, or None."""
        return None

    def before_update(self, step: int) -> None:
        """Called with the whole, clipped gradient of optimizer step `step`, counted from 1, before it is taken."""

    def after_update(self, step: int, optimizer: torch.optim.Optimizer) -> bool:
        """Called after optimizer step `step`, its gradients still there.

        True says that other parameters train from now on; the trainer then makes a new optimizer.
        """
        return False

    def scalars(self) -> dict[str, Any]:
        """What a checkpoint needs of the rule beside tensors, ready for JSON."""
        return {}

    def load_scalars(self, values: Mapping[str, Any]) -> None:
        """The inverse of `scalars`; called before any tensor of the checkpoint is read."""

    def tensors(self) -> dict[str, Tensor]:
        """Live tensors that only training needs: the `training_state` of every adapter, by path and name."""
        return {
            f"{path}.{name}": getattr(adapter, name)
            for path, adapter in self.adapters.items()
            for name in adapter.training_state
        }


def _nothing() -> None:
    """No sample."""


def _keep(config: AdapterConfig) -> None:
    """No record."""
