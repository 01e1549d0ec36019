"""Linear layers that share their input, such as q, k and v: their forward and backward products.

Per layer: S = drop(h) (s A)^T; y = S B^T, then y += h W^T in place. The small product comes first, so that the large
one adds to it inside its own loop: no pass over y of its own, one rounding instead of two. S is kept and serves B's
gradient; dS = dy B is worked out once and serves both A's gradient and h's. h is kept by no one here: callers have it
or work it out again. Every small pass counts, as a model of 30 layers makes thousands: all A of a group are one matrix,
s is in it, and what the forward pass made of the factors serves the backward pass as well.

There is one order, and no race between orders: the winner of a race may differ between two processes, and then a
resumed run would not be the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from core.ops.adjacent import below_each_other
from core.ops.dropout import dropped
from core.ops.factors import Ahead, make_factors, versions_of
from core.ops.group_gradients import GroupGradients
from core.ops.kernels import kernels_for
from core.ops.product import product
from core.ops.projection import Projection
from core.ops.scaling import scaled
from core.quantize.linear import QuantizedLinear


@dataclass(frozen=True)
class Kept:
    """What a group keeps from its forward pass for its backward pass, beside its input."""

    factors: tuple[Tensor, ...]  # s A (sum of r, in) of all adapted layers, then B (out, r) of each, as they were used
    smalls: tuple[Tensor, ...]  # S (N, r) of every adapted layer
    seeds: tuple[Tensor, ...]  # of every adapted layer that drops
    lengths: tuple[Tensor, ...]  # |W + s B A| (out) of every DoRA
    gains: tuple[Tensor, ...]  # m over that
    products: tuple[Tensor, ...]  # x W^T + s S B^T (N, out) of every DoRA, where they are kept

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, for `save_for_backward`."""
        return (*self.factors, *self.smalls, *self.seeds, *self.lengths, *self.gains, *self.products)

    def without_products(self) -> Kept:
        """What `Group.again` needs."""
        return replace(self, products=())


class Group:
    """Some projections of one input."""

    def __init__(self, *projections: Projection) -> None:
        self.projections = projections
        self.makes_factors = any(each.adapter is not None and each.adapter.makes_factors for each in projections)
        self.parameters: tuple[Tensor, ...] = ()
        self._read()
        self.adapted = [each for each in projections if each.adapter is not None]
        ends = list(accumulate(len(each.parameters) for each in self.adapted))
        self.places = [0, *ends[:-1]] if ends else []  # where each adapted layer's A stands among the parameters
        indices = [index for index, each in enumerate(projections) if each.adapter is not None]
        self.numbered = list(zip(indices, self.places, self.adapted, strict=True))  # which output, place, the layer
        self.ranks = [len(self.parameters[place]) for place in self.places]
        self.scales = [each.scale for each in self.adapted]
        self.dropping = [each for each in projections if each.dropout]
        self.scaled = [each for each in projections if each.is_dora]
        self.ahead: Ahead | None = None  # the factors of the next forward pass

    def live_parameters(self) -> tuple[Tensor, ...]:
        """The parameters for one forward pass; factors that are none themselves are made anew, in its own graph.

        What stays here of these is values only: the graph of how they were made would outlive the pass, and a pass that
        is recorded later could not add to the same gradients.
        """
        return self._read() if self.makes_factors else self.parameters

    def _read(self) -> tuple[Tensor, ...]:
        live = tuple(tensor for each in self.projections for tensor in each.parameters)
        self.parameters = tuple(each.detach() for each in live) if self.makes_factors else live
        return live

    @property
    def width(self) -> int:
        """Of the input that all share, read from an adapter."""
        return int(self.parameters[self.places[0]].shape[1])

    def unpack(self, tensors: Sequence[Tensor], has_products: bool = True) -> tuple[Kept, tuple[Tensor, ...]]:
        """What was kept, and the parameters, from tensors saved in this order."""
        factors = len(self.adapted) + 1 if self.adapted else 0
        products = len(self.scaled) if has_products else 0
        counts = factors, len(self.adapted), len(self.dropping), len(self.scaled), len(self.scaled), products
        parts, start = [], 0
        for count in counts:
            parts.append(tuple(tensors[start : start + count]))
            start += count
        return Kept(*parts), tuple(tensors[start:])

    def forward(
        self, h: Tensor, residual: Tensor | None = None, smalls: Sequence[Tensor] | None = None, bare: int = 0
    ) -> tuple[list[Tensor], Kept]:
        """The outputs (N, out) of rows h (N, in); `residual` (N, out) is added to the only one.

        `smalls` are the S where they are known already; the first `bare` outputs lack S B^T, or the gain of a DoRA,
        which are the caller's to add.
        """
        seeds = [seed for each in self.projections if (seed := each.draw_seed(h)) is not None]
        factors = self.factors(h.dtype)
        smalls = self._smalls(h, seeds, factors) if smalls is None else smalls
        lengths = [each.norms() for each in self.scaled]
        gains = [each.parameters[2].detach() / length for each, length in zip(self.scaled, lengths, strict=True)]
        kept = Kept(factors, tuple(smalls), tuple(seeds), tuple(lengths), tuple(gains), ())
        return self._outputs(h, kept, residual, bare)

    def again(self, h: Tensor, kept: Kept, bare: int = 0) -> tuple[list[Tensor], Kept]:
        """The outputs of a forward pass without residual once more, bit for bit, whatever was dropped from h in it."""
        return self._outputs(h, kept, None, bare)

    def _outputs(self, h: Tensor, kept: Kept, residual: Tensor | None, bare: int) -> tuple[list[Tensor], Kept]:
        if bare == len(self.projections) and not self.scaled and (weight := self.stacked(h.dtype)) is not None:
            biases = [bias for each in self.projections if (bias := each.start(h.dtype, None)) is not None]
            widths = [len(each.weight(h.dtype)) for each in self.projections]
            if len(biases) in (0, len(widths)):
                start = torch.cat(biases) if biases else None
                return list(torch.split(product(h, weight, start), widths, dim=1)), kept
        outputs: list[Tensor] = []
        products: list[Tensor] = []
        small, factor, gain = iter(kept.smalls), iter(kept.factors[1:]), iter(kept.gains)
        for index, each in enumerate(self.projections):
            own = (next(small), next(factor)) if each.adapter is not None else None
            if each.is_dora:
                products.append(_product(each, h, own, None))
                factor_of = next(gain)
                outputs.append(products[-1] if index < bare else scaled(each, products[-1], factor_of, residual))
            else:
                own = None if index < bare else own
                outputs.append(_product(each, h, own, each.start(h.dtype, residual)))
        return outputs, replace(kept, products=tuple(products)) if products else kept

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """`Kept.factors`: those that were made ahead, unless a parameter has changed since, or made now."""
        if not self.adapted:
            return ()
        if self.ahead is not None and self.ahead.made[0].dtype == dtype and self.ahead.versions == versions_of(self):
            return self.ahead.made
        return make_factors([self], dtype)[0]

    def _smalls(self, h: Tensor, seeds: Sequence[Tensor], factors: Sequence[Tensor]) -> list[Tensor]:
        """S of every adapted layer; without dropout by one product that reads h once."""
        if not self.adapted:
            return []
        if not seeds:
            return list(torch.split(h @ factors[0].T, self.ranks, dim=1))
        drawn = iter(seeds)
        return [
            (dropped(h, next(drawn), each.dropout) if each.dropout else h) @ a.T
            for each, a in zip(self.adapted, torch.split(factors[0], self.ranks), strict=True)
        ]

    def backward(
        self,
        kept: Kept,
        gradients: Sequence[Tensor],
        parameters: Sequence[Tensor],
        wants: Sequence[bool],
        sums: Sequence[Tensor] = (),
        of_b: Sequence[Tensor] = (),
    ) -> GroupGradients:
        """The gradients that follow from those of the outputs (N, out); `wants` says which parameters train.

        With the `sums` (out) of every DoRA, as `scale_back` gives them, the gradients are those of the products; `of_b`
        are those of every B (out, r), where they are known.
        """
        return GroupGradients(self, kept, gradients, parameters, wants, sums, of_b)

    def stacked(self, dtype: torch.dtype) -> Tensor | None:
        """The weights of several layers as one (sum of out, in), where they lie below each other in memory."""
        if len(self.projections) < 2 or any(isinstance(each.base, QuantizedLinear) for each in self.projections):
            return None
        return below_each_other([each.weight(dtype) for each in self.projections])

    def stack(self) -> None:
        """Lay the frozen weights of several linear layers below each other in memory, without changing a number."""
        bases: list[Any] = [each.base for each in self.projections]
        if len(bases) < 2 or any(isinstance(base, QuantizedLinear) for base in bases):
            return
        weights = [base.weight for base in bases]
        if len({(weight.dtype, weight.device) for weight in weights}) > 1 or below_each_other(weights) is not None:
            return
        whole = torch.cat([weight.detach() for weight in weights])
        for base, part in zip(bases, torch.split(whole, [len(weight) for weight in weights]), strict=True):
            base.weight.data = part

    def needs_input(self, wants: Sequence[bool]) -> bool:
        """Whether the gradients need h: when an A trains."""
        return any(wants[place] for place in self.places)


def _product(each: Projection, h: Tensor, own: tuple[Tensor, Tensor] | None, start: Tensor | None) -> Tensor:
    """start + S B^T + h W^T, the small product first; `own` is S and B."""
    weight = each.weight(h.dtype)
    if own is None:
        return product(h, weight, start if start is None or start.dim() == 1 else start.clone())
    small, b = own
    return product(h, weight, small @ b.T if start is None else add_product(start, small, b))


def add_product(start: Tensor, small: Tensor, b: Tensor) -> Tensor:
    """start + small b^T of a start (out) or (N, out), small (N, r) and b (out, r)."""
    kernels = kernels_for(start) if start.dim() == 2 else None
    return torch.addmm(start, small, b.T) if kernels is None else kernels.add_product(start, small, b)
