"""Which base an adapter is merged into when it was trained on a quantised one, and how far the two are apart.

The adapter learnt beside dq(W): merged into dq(W) it says exactly what it said in training. Merged into the original W
it meets the rounding error W - dq(W) for the first time, which is usually harmless and sometimes ruinous.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.errors import ConfigError
from core.quantize.linear import LAYERS
from core.quantize.size import NONE, QUANTIZATIONS

TRAINED, SIXTEEN_BIT = "trained", "16-bit"  # the base as the adapter knew it; the base's own files


def rounded_weight(weight: Tensor, quantization: str, is_conv1d: bool = False) -> Tensor:
    """A weight's value after it was quantised, in float32 and in the layout that it came in."""
    if is_conv1d:
        return rounded_weight(weight.T, quantization).T.contiguous()
    return LAYERS[quantization](weight).dequantize(torch.float32)


class BaseRounding:
    """Turns a base's weights into those that an adapter is merged into, and measures what that changes."""

    def __init__(self, trained: str, base_precision: str = TRAINED) -> None:
        """`trained` is the quantization of the training run; `base_precision` may ask for another base."""
        used = {TRAINED: trained, SIXTEEN_BIT: NONE}.get(base_precision, base_precision)
        if used not in QUANTIZATIONS or base_precision == NONE:
            choices = ", ".join((TRAINED, SIXTEEN_BIT, *(kind for kind in QUANTIZATIONS if kind != NONE)))
            raise ConfigError(f"base_precision is {base_precision!r}.", f"Pick one of: {choices}.")
        self.trained, self.used = trained, used
        self._error = self._norm = 0.0

    @property
    def is_needed(self) -> bool:
        """Whether any weight has to be looked at."""
        return (self.trained, self.used) != (NONE, NONE)

    @property
    def relative_difference(self) -> float:
        """|used - trained| / |trained| of all weights that came through, in the Frobenius norm."""
        return math.sqrt(self._error / self._norm) if self._norm else 0.0

    def __call__(self, weight: Tensor, is_conv1d: bool) -> Tensor:
        """The weight to merge into, in its own dtype or in float32."""
        used = self._value(weight, self.used, is_conv1d)
        if self.used != self.trained:
            trained = self._value(weight, self.trained, is_conv1d).float()
            self._error += float((used.float() - trained).square().sum(dtype=torch.float64))
            self._norm += float(trained.square().sum(dtype=torch.float64))
        return used

    @staticmethod
    def _value(weight: Tensor, quantization: str, is_conv1d: bool) -> Tensor:
        return weight if quantization == NONE else rounded_weight(weight, quantization, is_conv1d)
