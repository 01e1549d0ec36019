"""Linear layers that share their input, such as q, k and v: their forward and backward products.

Per layer: S = drop(h) A^T; y = s S B^T, then y += h W^T in place. The small product comes first, so that the large one
adds to it inside its own loop: no pass over y of its own, and one rounding instead of two. S is kept and serves B's
gradient; s dy B is worked out once and serves both A's gradient and h's. h is kept by no one here: callers have it or
work it out again.

There is one order, and no race between orders: the winner of a race may differ between two processes, and then a
resumed run would not be the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from core.ops.dropout import dropped
from core.ops.projection import Projection


@dataclass(frozen=True)
class Kept:
    """What a group keeps from its forward pass for its backward pass, beside its input."""

    smalls: tuple[Tensor, ...]  # S (N, r) of every adapted layer
    seeds: tuple[Tensor, ...]  # of every adapted layer that drops
    lengths: tuple[Tensor, ...]  # |W + s B A| (out) of every DoRA
    products: tuple[Tensor, ...]  # x W^T + s S B^T (N, out) of every DoRA

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, for `save_for_backward`."""
        return (*self.smalls, *self.seeds, *self.lengths, *self.products)


class Group:
    """Some projections of one input."""

    def __init__(self, *projections: Projection) -> None:
        self.projections = projections
        self.parameters = tuple(tensor for each in projections for tensor in each.parameters)
        self.adapted = [each for each in projections if each.adapter is not None]
        ends = list(accumulate(len(each.parameters) for each in self.adapted))
        self.places = [0, *ends[:-1]] if ends else []  # where each adapted layer's A stands among the parameters
        self.dropping = [each for each in projections if each.dropout]
        self.scaled = [each for each in projections if each.is_dora]

    def unpack(self, tensors: Sequence[Tensor]) -> tuple[Kept, tuple[Tensor, ...]]:
        """What was kept, and the parameters, from tensors saved in this order."""
        counts = len(self.adapted), len(self.dropping), len(self.scaled), len(self.scaled)
        parts, start = [], 0
        for count in counts:
            parts.append(tuple(tensors[start : start + count]))
            start += count
        return Kept(*parts), tuple(tensors[start:])

    def forward(self, h: Tensor, residual: Tensor | None = None) -> tuple[list[Tensor], Kept]:
        """The outputs (N, out) of rows h (N, in); `residual` (N, out) is added to the only one."""
        seeds = [seed for each in self.projections if (seed := each.draw_seed(h)) is not None]
        smalls = self._smalls(h, seeds)
        lengths = [each.norms() for each in self.scaled]
        outputs: list[Tensor] = []
        products: list[Tensor] = []
        small, length = iter(smalls), iter(lengths)
        for each in self.projections:
            own = next(small) if each.adapter is not None else None
            if each.is_dora:
                products.append(_product(each, h, own, None))
                outputs.append(scaled(each, products[-1], next(length), residual))
            else:
                outputs.append(_product(each, h, own, _start(each, h.dtype, residual)))
        return outputs, Kept(tuple(smalls), tuple(seeds), tuple(lengths), tuple(products))

    def _smalls(self, h: Tensor, seeds: Sequence[Tensor]) -> list[Tensor]:
        """S of every adapted layer; without dropout by one product that reads h once."""
        if not self.adapted:
            return []
        factors = [each.adapter.lora_A.detach() for each in self.adapted if each.adapter is not None]
        if not seeds:
            return list(torch.split(h @ _joined(factors, h.dtype).T, [each.rank for each in self.adapted], dim=1))
        drawn = iter(seeds)
        return [
            (dropped(h, next(drawn), each.dropout) if each.dropout else h) @ a.to(h.dtype).T
            for each, a in zip(self.adapted, factors, strict=True)
        ]

    def backward(
        self, kept: Kept, gradients: Sequence[Tensor], parameters: Sequence[Tensor], wants: Sequence[bool]
    ) -> GroupGradients:
        """The gradients that follow from those of the outputs (N, out); `wants` says which parameters train."""
        return GroupGradients(self, kept, gradients, parameters, wants)

    def needs_input(self, wants: Sequence[bool]) -> bool:
        """Whether the gradients need h: when an A trains."""
        return any(wants[place] for place in self.places)


class GroupGradients:
    """The backward pass of a group, in two parts: what h gets, and what the parameters get.

    In between a caller may work out h, of which the second part alone has a need.
    """

    def __init__(
        self, group: Group, kept: Kept, gradients: Sequence[Tensor], parameters: Sequence[Tensor], wants: Sequence[bool]
    ) -> None:
        self.group, self.kept, self.parameters, self.wants = group, kept, parameters, wants
        self.found: list[Tensor | None] = [None] * len(parameters)
        self.inner = list(gradients)  # the gradients of x W^T + s S B^T
        self._unscale()
        self.smalls = [  # the gradients of S
            (self.inner[index] @ parameters[place + 1].to(self.inner[index].dtype)).mul_(each.scale)
            for index, place, each in self._adapted()
        ]

    def of_input(self) -> Tensor:
        """sum of drop(s dy B A) + dy W, (N, in): the small products first, as in the forward pass."""
        dtype = self.inner[0].dtype
        factors = [self.parameters[place] for place in self.group.places]
        total: Tensor | None = None
        if factors and not self.kept.seeds:
            total = self._joined_smalls() @ _joined(factors, dtype)
        elif factors:
            drawn = iter(self.kept.seeds)
            for each, small, a in zip(self.group.adapted, self.smalls, factors, strict=True):
                part = small @ a.to(dtype)
                part = dropped(part, next(drawn), each.dropout) if each.dropout else part
                total = part if total is None else total.add_(part)
        for each, gradient in zip(self.group.projections, self.inner, strict=True):
            weight = each.weight(dtype)
            total = gradient @ weight if total is None else total.addmm_(gradient, weight)
        assert total is not None
        return total

    def of_parameters(self, h: Tensor | None) -> list[Tensor | None]:
        """Those of every A, B and m in turn, None where nothing trains; h (N, in) may be None when no A does."""
        for (index, place, each), small in zip(self._adapted(), self.kept.smalls, strict=True):
            if self.wants[place + 1]:
                b = self.parameters[place + 1]
                self.found[place + 1] = wide_product(self.inner[index].T, small, b.dtype).mul_(each.scale)
        if h is not None and self.group.needs_input(self.wants):
            for place, gradient in zip(self.group.places, self._of_a(h), strict=True):
                self.found[place] = gradient if self.wants[place] else None
        return self.found

    def _of_a(self, h: Tensor) -> list[Tensor]:
        """(s dy B)^T drop(h) of every adapted layer; without dropout by one product that reads h once."""
        dtype = self.parameters[self.group.places[0]].dtype
        if not self.kept.seeds:
            joined = wide_product(self._joined_smalls().T, h, dtype)
            return list(torch.split(joined, [each.rank for each in self.group.adapted]))
        drawn = iter(self.kept.seeds)
        return [
            wide_product(small.T, dropped(h, next(drawn), each.dropout) if each.dropout else h, dtype)
            for each, small in zip(self.group.adapted, self.smalls, strict=True)
        ]

    def _unscale(self) -> None:
        """Go back through DoRA's gain: dm = sum over rows of dy u / |V|, du = dy m / |V|; |V| is a constant."""
        lengths, products = iter(self.kept.lengths), iter(self.kept.products)
        for index, place, each in self._adapted():
            if each.is_dora:
                gradient, length, product = self.inner[index], next(lengths), next(products)
                m = self.parameters[place + 2]
                if self.wants[place + 2]:
                    self.found[place + 2] = (gradient * product).sum(0, dtype=m.dtype) / length
                self.inner[index] = gradient * (m / length).to(gradient.dtype)

    def _adapted(self) -> list[tuple[int, int, Projection]]:
        """(which output, where its A stands among the parameters, the layer) of every adapted layer."""
        indices = [index for index, each in enumerate(self.group.projections) if each.adapter is not None]
        return list(zip(indices, self.group.places, self.group.adapted, strict=True))

    def _joined_smalls(self) -> Tensor:
        return self.smalls[0] if len(self.smalls) == 1 else torch.cat(self.smalls, dim=1)


def scaled(each: Projection, product: Tensor, length: Tensor, residual: Tensor | None = None) -> Tensor:
    """DoRA's output m / |V| * product + bias (+ residual), all (N, out)."""
    gain = (each.parameters[2].detach() / length).to(product.dtype)
    start = _start(each, product.dtype, residual)
    return product * gain if start is None else torch.addcmul(start, product, gain)


def wide_product(one: Tensor, other: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient in the format of its parameter: 16-bit operands are summed in float32 and not rounded back."""
    if one.dtype == dtype:
        return one @ other
    if one.is_cuda and dtype == torch.float32:
        return torch.mm(one, other, out_dtype=torch.float32)
    return (one @ other).to(dtype) if one.is_cuda else one.to(dtype) @ other.to(dtype)


def _start(each: Projection, dtype: torch.dtype, residual: Tensor | None) -> Tensor | None:
    bias = None if each.bias is None else each.bias.detach().to(dtype)
    if residual is None or bias is None:
        return bias if residual is None else residual
    return residual + bias


def _product(each: Projection, h: Tensor, small: Tensor | None, start: Tensor | None) -> Tensor:
    """start + s S B^T + h W^T, the small product first."""
    weight = each.weight(h.dtype)
    if small is None:
        return h @ weight.T if start is None else torch.addmm(start, h, weight.T)
    b = each.parameters[1].detach().to(h.dtype)
    made = (small * each.scale) @ b.T if start is None else torch.addmm(start, small, b.T, alpha=each.scale)
    return made.addmm_(h, weight.T)


def _joined(factors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Several A as one (sum of r, in)."""
    return (factors[0] if len(factors) == 1 else torch.cat(list(factors))).detach().to(dtype)
