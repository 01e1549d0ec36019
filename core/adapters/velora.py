"""VeLoRA: the input of A is kept for the backward pass as one number per sub-token (Miles et al. 2024, section 3).

A token x of D numbers is cut into G groups of M = D / G. Of each group only its product with one unit vector v is kept,
and the backward pass takes z v^T for x: dA = scale g^T (z v^T). Outputs, dx and dB are exact; with M = 1 so is dA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.adapters.base import LayerSettings, adapters, layer_size
from core.adapters.lora import LoRA
from core.methods.velora import groups_of
from core.ops.factor_product import add_product


class _CompressedLinear(torch.autograd.Function):
    """x A^T for x (N, D) and A (r, D), which keeps (N, G) numbers of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, direction: Tensor, scale: float) -> Tensor:
        parts = x.reshape(len(x), -1, len(direction))  # (N, G, M)
        ctx.save_for_backward(parts @ direction, a, direction)
        ctx.scale = scale
        return F.linear(x, a)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = grad_outputs  # (N, r)
        z, a, direction = ctx.saved_tensors
        d_x = gradient @ a if ctx.needs_input_grad[0] else None
        d_a = ctx.scale * ((gradient.T @ z)[:, :, None] * direction).flatten(1)  # (r, G, M) as (r, D)
        return d_x, d_a, None, None


@adapters.register("velora")
class VeLoRA(LoRA):
    """LoRA with compressed inputs."""

    training_state = ("direction",)
    direction: Tensor  # (M), of length 1; zero before the first batch

    def __init__(self, base: nn.Module, settings: LayerSettings, scale: float) -> None:
        super().__init__(base, settings, scale)
        d_in, _ = layer_size(base)
        size = d_in // groups_of(settings.options, d_in)
        self.register_buffer(
            "direction", torch.zeros(size, device=settings.device, dtype=settings.dtype), persistent=False
        )
        self._has_direction = False  # spares asking the device in every step

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """LoRA's start, and a random direction where that is asked for."""
        super().reset_parameters(generator)
        if self.options.direction == "random":
            drawn = torch.empty(self.direction.shape, dtype=self.direction.dtype).normal_(generator=generator)
            self.direction.copy_(F.normalize(drawn, dim=0))

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """LoRA; in training with the compressed input behind it."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x, out, base)
        flat = x.to(out.dtype).reshape(-1, x.shape[-1])
        self._look_at(flat)
        small: Tensor = _CompressedLinear.apply(  # type: ignore[no-untyped-call]
            flat, self.lora_A.to(out.dtype), self.direction.to(out.dtype), float(self.options.velora_scale)
        )
        return add_product(out, small.view(*x.shape[:-1], -1), self.lora_B, self.scale)

    @torch.no_grad()
    def _look_at(self, x: Tensor) -> None:
        """Take the mean sub-token of x (N, D) as the direction, of the first batch or of every one."""
        if self.options.direction != "every_batch":
            self._has_direction = self._has_direction or bool(self.direction.any())
            if self._has_direction:
                return
        mean = x.reshape(-1, len(self.direction)).mean(0, dtype=self.direction.dtype)
        self.direction.copy_(F.normalize(mean, dim=0))
