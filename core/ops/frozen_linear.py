"""A frozen linear layer by itself, with the products of `core.ops.product` both ways: where layers are not fused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core.ops.product import FEWEST_ROWS, product, takes_onednn


def runs_sooner(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether `frozen_linear` stands in for a call of a layer: a plain one, of enough rows, that nobody watches."""
    if type(layer) is not nn.Linear or kwargs or len(args) != 1 or not isinstance(x := args[0], Tensor):
        return False
    is_watched = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    is_alike = x.dtype == layer.weight.dtype and x.dim() > 1 and x.numel() >= FEWEST_ROWS * layer.in_features
    if is_watched or not is_alike or not takes_onednn(x) or torch.is_autocast_enabled("cpu"):
        return False
    return not any(parameter.requires_grad for parameter in layer.parameters())


def frozen_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """The layer's output (..., out) for x (..., in); no gradient for the layer."""
    made: Tensor = _FrozenLinear.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return made


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        flat = gradient.reshape(-1, gradient.shape[-1])
        return product(flat, weight.T).view(*gradient.shape[:-1], -1), None, None
