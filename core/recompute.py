"""Layers that keep less for the backward pass, and compute the rest again there: slower, smaller.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", an eighth of the layers at a time and only as many as
must be. A fused layer gives up first what is large and cheap (`core.ops.decoder_layer.Again`): gate and up of its MLP
are two thirds of what it keeps, and its whole forward pass is twice the work of computing them again. Other layers can
only be computed again as a whole. What is kept then can wait in the host's memory (`core.offload`): of a fused layer on
a GPU that is done before more is computed again, as it hides behind the computing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from core import offload
from core.loss import device_of
from core.micro_batches import drops_at_random
from core.offload import Offload
from core.ops.decoder_layer import Again
from core.ops.stand_in import LayerStandIn

PARTS = 8  # of the layers, one of which gives up more at a time
WORDS = {
    Again.LAYER: "all of {}",
    Again.ATTENTION: "the attention and the inner products of the MLP of {}",
    Again.ASIDE: "the inner products of the MLP of {}, of which all else waits in the host's memory",
    Again.MLP: "the inner products of the MLP of {}",
}


class Recompute:
    """How much of which of a model's layers is computed again, in `steps` that give up more and more; none at first.

    The first layers first, since what the others keep is gone by the time that these are computed again.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = repeated_layers(model)
        self.parts = min(PARTS, len(self.layers))
        self.are_fused = False  # any of them, when they ran last
        self.steps = 0
        self.offload = Offload()

    @property
    def levels(self) -> tuple[Again, ...]:
        """What the layers give up one after another."""
        if device_of(self.model).type in offload.DEVICES:
            return (Again.MLP, Again.ASIDE, Again.OFFLOAD) if self.are_fused else (Again.LAYER, Again.OFFLOAD)
        return (Again.MLP, Again.ATTENTION, Again.LAYER) if self.are_fused else (Again.LAYER,)

    @property
    def offloads(self) -> bool:
        """Whether something waits in the host's memory."""
        return not {Again.ASIDE, Again.OFFLOAD}.isdisjoint(self.plan(self.steps))

    def more(self) -> bool:
        """Give up a step more; False when nothing is left."""
        if self.steps >= self.parts * len(self.levels):
            return False
        self.steps += 1
        return True

    def plan(self, steps: int) -> list[Again]:
        """What of each layer is computed again after so many steps."""
        given_up, count = (Again.NOTHING, *self.levels), len(self.layers)
        parts = (index * self.parts // count for index in range(count))
        levels = ((steps + self.parts - 1 - part) // self.parts for part in parts)
        return [given_up[min(level, len(given_up) - 1)] for level in levels]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, the layers run so, in whatever form of their forward is in place."""
        self.are_fused = any(_is_fused(layer.forward) for layer in self.layers)
        keeps_random = bool(self.steps) and drops_at_random(self.model)
        plan = self.plan(self.steps)
        with ExitStack() as stack:
            if self.offloads:
                stack.enter_context(self.offload.running())
            for layer, level in zip(self.layers, plan, strict=True):
                if level:
                    stack.enter_context(self._giving_up(layer, level, keeps_random))
            yield

    @contextmanager
    def _giving_up(self, layer: Any, level: Again, keeps_random: bool) -> Iterator[None]:
        own, forward = layer.__dict__.get("forward"), layer.forward
        if _is_fused(forward) and level < Again.LAYER:
            is_aside = level == Again.ASIDE
            given_up = (Again.MLP, keeps_random, self.offload.keeping_all) if is_aside else (level, keeps_random)
            forward.give_up(*given_up)
            try:
                yield
            finally:
                forward.give_up()
            return
        keeping = partial(self.offload.keeping_input, moves=level == Again.OFFLOAD)
        layer.forward = partial(_again_later, forward, keeps_random, keeping)
        try:
            yield
        finally:
            del layer.forward
            if own is not None:
                layer.forward = own

    def in_words(self) -> str:
        """What is computed again, for the log."""
        counts = Counter(self.plan(self.steps))
        moved = counts.pop(Again.OFFLOAD, 0)
        counts[Again.LAYER] += moved
        found = [words.format(counts[level]) for level, words in WORDS.items() if counts[level]]
        waiting = f", the inputs of {moved} of which wait in the host's memory" if moved else ""
        return f"Computed again backward, of {len(self.layers)} layers: {'; '.join(found) or 'nothing'}{waiting}."


def _is_fused(forward: Any) -> bool:
    return isinstance(forward, LayerStandIn) and forward.fused is not None


def _again_later(
    forward: Callable[..., Any], keeps_random: bool, keeping: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    with keeping(args[0]) if args else nullcontext():  # what is passed by name, checkpoint keeps where it is
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=keeps_random, **kwargs)


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformers model that can be computed again one by one, in the order of the model."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
