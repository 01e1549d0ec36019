"""The backward pass of linear layers that share their input, in two parts: what h gets, and what the parameters get.

In between a caller may work out h, of which the second part alone has a need.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core.ops.adjacent import side_by_side
from core.ops.dropout import dropped
from core.ops.product import product
from core.ops.rms_norm import Normed
from core.ops.scaling import scale_back, scale_rows
from core.ops.small_gradients import small_gradients
from core.ops.wide_product import wide_product

if TYPE_CHECKING:
    from core.ops.group import Group, Kept


class GroupGradients:
    """The gradients of a group's input and parameters, from those of its outputs (N, out)."""

    def __init__(
        self,
        group: Group,
        kept: Kept,
        gradients: Sequence[Tensor],
        parameters: Sequence[Tensor],
        wants: Sequence[bool],
        sums: Sequence[Tensor],
        of_b: Sequence[Tensor],
    ) -> None:
        self.group, self.kept, self.parameters, self.wants = group, kept, parameters, wants
        self.found: list[Tensor | None] = [None] * len(parameters)
        self.inner = list(gradients)  # the gradients of x W^T + s S B^T
        self._unscale(sums or self._scale_back())
        self.take_b(of_b)
        self.joined = self._joined_smalls()

    def _joined_smalls(self) -> Tensor | None:
        """The gradients of every S side by side, (N, sum of r); and those of every B, where one pass gives both."""
        if not self.group.adapted:
            return None
        own = [self.inner[index] for index, _, _ in self.group.numbered]
        wants_b = any(self.wants[place + 1] and self.found[place + 1] is None for place in self.group.places)
        at_once = small_gradients(own, self.kept.factors[1:], self.kept.smalls, wants_b)
        if at_once is not None:
            self.take_b(at_once[1])
            return at_once[0]
        joined = self.inner[0].new_empty(len(self.inner[0]), sum(self.group.ranks))
        parts = torch.split(joined, self.group.ranks, dim=1)
        for gradient, b, part in zip(own, self.kept.factors[1:], parts, strict=True):
            torch.mm(gradient, b, out=part)
        return joined

    def of_input(self) -> Tensor:
        """sum of drop(dS (s A)) + dy W, (N, in): the small products first, as in the forward pass."""
        dtype = self.inner[0].dtype
        total: Tensor | None = None
        if self.joined is None:
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

    def of_input_bare(self, made: Tensor) -> None:
        """dy W (N, in) of the only layer, written to `made`; the small product is the caller's to add."""
        (each,), (gradient,) = self.group.projections, self.inner
        torch.mm(gradient, each.weight(gradient.dtype), out=made)

    def take_a(self, gradients: Sequence[Tensor]) -> None:
        """Those of every A, (r, in) each, which the caller has worked out."""
        for place, gradient in zip(self.group.places, gradients, strict=True):
            if self.wants[place]:
                self.found[place] = gradient.to(self.parameters[place].dtype)

    def take_b(self, gradients: Sequence[Tensor]) -> None:
        """Those of every B, (out, r) each, where another pass has worked them out."""
        for place, gradient in zip(self.group.places, gradients, strict=False):
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
