"""Frozen linear layers with a quantised weight: y = x dq(W)^T + b, and gradients that flow through to x.

The weight exists in full only while a product is computed: the backward pass unpacks it again instead of keeping it,
and since it is frozen nothing of x is kept either (QLoRA, section 3). A GPT-2 Conv1D, whose weight is (in, out), is
turned around first, so that a quantised weight is always (out, in).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.conv1d import is_conv1d
from core.quantize import kernels
from core.quantize.int8 import dequantize_rows, quantize_rows
from core.quantize.nf4 import Absmax, dequantize_absmax, dequantize_blocks, quantize_absmax, quantize_blocks
from core.quantize.size import INT8, NF4


class QuantizedLinear(nn.Module):
    """What all kinds have in common. The weight's parts are buffers, so that no optimizer ever sees them."""

    kind: ClassVar[str]
    exact: ClassVar[tuple[str, ...]]  # float buffers that stay float32 whatever the model is cast to

    def __init__(self, weight: Tensor, bias: Tensor | None = None, is_conv1d: bool = False) -> None:
        """Quantise a weight (out, in); it computes in the weight's own dtype until the module is cast."""
        super().__init__()
        self.out_features, self.in_features = map(int, weight.shape)
        self.is_conv1d = is_conv1d  # what the layer was in the model, whose files have the weight as (in, out)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.register_buffer("like", weight.new_empty(0), persistent=False)  # has the dtype that it computes in
        self.pack(weight)

    @classmethod
    def from_layer(cls, layer: nn.Module) -> QuantizedLinear:
        """The quantised form of a Linear or Conv1D."""
        was_conv1d = is_conv1d(layer)
        weight = layer.get_parameter("weight").detach()
        made = cls(weight.T if was_conv1d else weight, getattr(layer, "bias", None), was_conv1d)
        return made.train(layer.training)

    def pack(self, weight: Tensor) -> None:
        """Fill the buffers with a weight (out, in)."""
        raise NotImplementedError

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight's value, (out, in), computed in float32 and rounded to `dtype` once."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out), in the dtype of x."""
        out: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias

    def to_linear(self) -> nn.Linear:
        """A frozen dense layer with the weight's value, in the dtype that this one computes in."""
        dense = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        dense.weight = nn.Parameter(self.dequantize(self.dtype), requires_grad=False)
        dense.register_parameter("bias", self.bias)
        return dense.train(self.training)

    @property
    def weight(self) -> Tensor:
        """The weight's value, (out, in), worked out anew whenever it is read."""
        return self.dequantize(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The number format that the layer computes in."""
        return self.get_buffer("like").dtype

    @property
    def device(self) -> torch.device:
        """Where the layer is."""
        return self.get_buffer("like").device

    @property
    def weight_bytes(self) -> int:
        """Bytes of the quantised weight with its scales, without the bias."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def extra_repr(self) -> str:
        """The sizes, as torch's own Linear shows them."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, kind={self.kind}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Move or cast like any module, except that the scales keep their precision."""
        exact = {name: self.get_buffer(name) for name in self.exact}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in exact.items():
            self._buffers[name] = before.to(self.get_buffer(name).device)
        return self


class NF4Linear(QuantizedLinear):
    """4-bit NormalFloat with double quantisation."""

    kind = NF4
    exact = ("absmax_scales", "absmax_mean")

    def pack(self, weight: Tensor) -> None:
        """Quantise the weight, then its scales."""
        packed, absmax = quantize_blocks(weight)
        small = quantize_absmax(absmax)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax_codes", small.codes)
        self.register_buffer("absmax_scales", small.scales)
        self.register_buffer("absmax_mean", small.mean)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight's value, by a kernel where there is one."""
        packed = self.get_buffer("packed")
        absmax = Absmax(*map(self.get_buffer, ("absmax_codes", "absmax_scales", "absmax_mean")))
        shape = self.out_features, self.in_features
        if (values := kernels.dequantize_nf4(packed, absmax, shape, dtype)) is not None:
            return values
        return dequantize_blocks(packed, dequantize_absmax(absmax), shape[0] * shape[1], dtype).view(shape)


class Int8Linear(QuantizedLinear):
    """8-bit integers with a scale for every output."""

    kind = INT8
    exact = ("absmax",)

    def pack(self, weight: Tensor) -> None:
        """Quantise the weight row by row."""
        codes, absmax = quantize_rows(weight)
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", absmax)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight's value."""
        return dequantize_rows(self.get_buffer("codes"), self.get_buffer("absmax"), dtype)


LAYERS: dict[str, type[QuantizedLinear]] = {NF4: NF4Linear, INT8: Int8Linear}


class _Product(torch.autograd.Function):
    """x dq(W)^T, of which the gradient is g dq(W): the layer is remembered, no tensor is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantize(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dequantize(gradient.dtype), None
