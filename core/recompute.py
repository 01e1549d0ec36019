"""Layers that keep nothing but their input for the backward pass, and are computed again there: slower, smaller.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", a layer at a time and only as many as must be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from core.micro_batches import drops_at_random


class Recompute:
    """The first `count` of a model's layers are computed again in the backward pass; none at first.

    The first, since what the others keep is gone by the time that these are computed again.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = repeated_layers(model)
        self.count = 0

    def more(self) -> bool:
        """A quarter of the layers more; False when none is left."""
        if self.count >= len(self.layers):
            return False
        self.count = min(len(self.layers), self.count + -(-len(self.layers) // 4))
        return True

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, these layers run so, in whatever form of their forward is in place."""
        chosen = self.layers[: self.count]
        before = [layer.__dict__.get("forward") for layer in chosen]
        keeps_random = bool(chosen) and drops_at_random(self.model)
        for layer in chosen:
            layer.forward = partial(_again_later, layer.forward, keeps_random)
        try:
            yield
        finally:
            for layer, own in zip(chosen, before, strict=True):
                if own is None:
                    del layer.forward
                else:
                    layer.forward = own


def _again_later(forward: Callable[..., Any], keeps_random: bool, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=keeps_random, **kwargs)


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformers model that can be computed again one by one, in the order of the model."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
