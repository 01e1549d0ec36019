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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from core.ops.adjacent import below_each_other, side_by_side
from core.ops.dropout import dropped
from core.ops.factors import Ahead, make_factors, versions_of
from core.ops.kernels import kernels_for
from core.ops.product import product
from core.ops.projection import Projection
from core.ops.rms_norm import Normed
from core.ops.scaling import scale_back, scale_rows, scaled
from core.ops.wide_product import wide_product
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
    ) -> GroupGradients:
        """The gradients that follow from those of the outputs (N, out); `wants` says which parameters train.

        With the `sums` (out) of every DoRA, as `scale_back` gives them, the gradients are those of the products.
        """
        return GroupGradients(self, kept, gradients, parameters, wants, sums)

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


class GroupGradients:
    """The backward pass of a group, in two parts: what h gets, and what the parameters get.

    In between a caller may work out h, of which the second part alone has a need.
    """

    def __init__(
        self,
        group: Group,
        kept: Kept,
        gradients: Sequence[Tensor],
        parameters: Sequence[Tensor],
        wants: Sequence[bool],
        sums: Sequence[Tensor],
    ) -> None:
        self.group, self.kept, self.parameters, self.wants = group, kept, parameters, wants
        self.found: list[Tensor | None] = [None] * len(parameters)
        self.inner = list(gradients)  # the gradients of x W^T + s S B^T
        self._unscale(sums or self._scale_back())
        self.joined = self._joined_smalls()

    def _joined_smalls(self) -> Tensor | None:
        """The gradients of every S side by side, (N, sum of r)."""
        if not self.group.adapted:
            return None
        joined = self.inner[0].new_empty(len(self.inner[0]), sum(self.group.ranks))
        parts = torch.split(joined, self.group.ranks, dim=1)
        for (index, _, _), b, part in zip(self.group.numbered, self.kept.factors[1:], parts, strict=True):
            torch.mm(self.inner[index], b, out=part)
        return joined

    def of_input(self, is_bare: bool = False) -> Tensor:
        """sum of drop(dS (s A)) + dy W, (N, in): the small products first, as in the forward pass, unless `is_bare`."""
        dtype = self.inner[0].dtype
        total: Tensor | None = None
        if self.joined is None or is_bare:
            pass
        elif not self.kept.seeds:
            total = self.joined @ self.kept.factors[0]
        else:
            drawn = iter(self.kept.seeds)
            ranks = self.group.ranks
            pairs = zip(torch.split(self.joined, ranks, dim=1), torch.split(self.kept.factors[0], ranks), strict=True)
            for each, (small, a) in zip(self.group.adapted, pairs, strict=True):
                part = small @ a
                part = dropped(part, next(drawn), each.dropout) if each.dropout else part
                total = part if total is None else total.add_(part)
        for gradient, weight in self._pairs(dtype):
            total = product(gradient, weight.T, total)
        assert total is not None
        return total

    def _pairs(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """dy and W of every layer, or of all of them at once where they lie so: fewer passes over the sum."""
        whole, weight = side_by_side(self.inner), self.group.stacked(dtype)
        if whole is not None and weight is not None:
            yield whole, weight
            return
        for each, gradient in zip(self.group.projections, self.inner, strict=True):
            yield gradient, each.weight(dtype)

    def take_a(self, gradients: Sequence[Tensor]) -> None:
        """Those of every A, (r, in) each, which the caller has worked out."""
        for place, gradient in zip(self.group.places, gradients, strict=True):
            if self.wants[place]:
                self.found[place] = gradient.to(self.parameters[place].dtype)

    def take_b(self, gradients: Sequence[Tensor]) -> None:
        """Those of every B, (out, r) each, which the caller has worked out."""
        for place, gradient in zip(self.group.places, gradients, strict=True):
            if self.wants[place + 1]:
                self.found[place + 1] = gradient.to(self.parameters[place + 1].dtype)

    def of_parameters(self, h: Normed | None) -> list[Tensor | None]:
        """Those of every A, B and m in turn, None where nothing trains; h (N, in) may be None when no A asks for it."""
        for (index, place, _), small in zip(self.group.numbered, self.kept.smalls, strict=True):
            if self.wants[place + 1] and self.found[place + 1] is None:
                self.found[place + 1] = wide_product(self.inner[index].T, small, self.parameters[place + 1].dtype)
        if h is not None and self.group.needs_input(self.wants):
            for place, gradient in zip(self.group.places, self._of_a(h), strict=True):
                self.found[place] = gradient if self.wants[place] else None
        return self.found

    def _of_a(self, h: Normed) -> list[Tensor]:
        """s dS^T drop(h) of every adapted layer; without dropout by one product that reads h once."""
        assert self.joined is not None
        dtype = self.parameters[self.group.places[0]].dtype
        joined, x, ranks, scales = self.joined, h.x, self.group.ranks, self.group.scales
        scale = scales[0] if len(set(scales)) == 1 else 1.0  # else each gets its own in a pass of its own
        if h.rstd is not None:
            joined, scale = scale_rows(joined, h.rstd, scale), 1.0
        if not self.kept.seeds:
            parts = [wide_product(joined.T, x, dtype, scale)]
            found = list(torch.split(parts[0], ranks))
        else:
            drawn = iter(self.kept.seeds)
            smalls = torch.split(joined, ranks, dim=1)
            parts = found = [
                wide_product(small.T, dropped(x, next(drawn), each.dropout) if each.dropout else x, dtype, scale)
                for each, small in zip(self.group.adapted, smalls, strict=True)
            ]
        if h.gain is not None:
            for part in parts:
                part.mul_(h.gain)
        if len(set(scales)) > 1:
            for part, own in zip(found, scales, strict=True):
                part.mul_(own)
        return found

    def _scale_back(self) -> list[Tensor]:
        """Go back through the gains: du = dy m / |V|; the sums over rows of dy u are returned."""
        if not self.group.scaled:
            return []
        places = [index for index, _, each in self.group.numbered if each.is_dora]
        widths = [self.inner[index].shape[1] for index in places]
        whole = self.inner[places[0]].new_empty(len(self.inner[0]), sum(widths))  # side by side, as q, k and v were
        sums = []
        pairs = zip(places, torch.split(whole, widths, dim=1), self.kept.products, self.kept.gains, strict=True)
        for index, made, own_product, gain in pairs:
            self.inner[index], own = scale_back(self.inner[index], own_product, gain, made)
            sums.append(own)
        return sums

    def _unscale(self, sums: Sequence[Tensor]) -> None:
        """dm = sum over rows of dy u / |V|, where |V| is a constant."""
        places = [place for _, place, each in self.group.numbered if each.is_dora]
        for place, own, length in zip(places, sums, self.kept.lengths, strict=True):
            if self.wants[place + 2]:
                self.found[place + 2] = own.to(length.dtype) / length


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
