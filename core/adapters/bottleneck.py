"""Bottleneck adapters: h + W_up gelu(W_down h + b_1) + b_2 on the output of each block (Houlsby et al. 2019,
section 2).

They stand before the residual connection and the norm. Being non-linear, they cannot be folded into a weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.adapters.base import Adapter, LayerSettings, Places, adapters, layer_size
from core.config import AdapterConfig
from core.methods.adapter import Bottleneck as Description
from core.methods.adapter import BottleneckOptions

START = 1e-3  # spread of the paper's start values, cut at two of it


@adapters.register("adapter")
class Bottleneck(Adapter):
    """A bottleneck after a Linear or Conv1D of `d_out` outputs."""

    peft_type = "BOTTLENECK"
    keys = {"down": "down.weight", "down_bias": "down.bias", "up": "up.weight", "up_bias": "up.bias"}

    def __init__(self, d_out: int, settings: LayerSettings) -> None:
        super().__init__()
        self.exact_start = bool(settings.options.exact_start)
        width, device, dtype = settings.options.width, settings.device, settings.dtype
        self.down = nn.Parameter(torch.empty(width, d_out, device=device, dtype=dtype))
        self.down_bias = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.up = nn.Parameter(torch.empty(d_out, width, device=device, dtype=dtype))
        self.up_bias = nn.Parameter(torch.empty(d_out, device=device, dtype=dtype))

    @classmethod
    def places(cls, model: nn.Module, modules: Mapping[str, nn.Module], config: AdapterConfig) -> Places:
        """The last layer of every block, and the norms when they train too."""
        places = super().places(model, modules, Description.placed(config))
        if BottleneckOptions(**config.method_options).norms:
            norms = {path: module for path, module in modules.items() if type(module).__name__.endswith("Norm")}
            names = {path: [name for name, _ in norm.named_parameters(recurse=False)] for path, norm in norms.items()}
            places.parts.update(names)
        return places

    @classmethod
    def from_base(cls, base: nn.Module, settings: LayerSettings) -> Adapter:
        """Make the adapter that fits the output of `base`."""
        return cls(layer_size(base)[1], settings)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Normal with a spread of 1e-3, cut at two of it, biases 0; W_up zero for an exact start."""
        for weight in (self.down, self.up):
            start = torch.empty(weight.shape, dtype=weight.dtype)
            weight.copy_(nn.init.trunc_normal_(start, std=START, a=-2 * START, b=2 * START, generator=generator))
        if self.exact_start:
            self.up.zero_()
        self.down_bias.zero_()
        self.up_bias.zero_()

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """out + W_up gelu(W_down out + b_1) + b_2, for out (..., d_out)."""
        inner = F.gelu(F.linear(out, self.down.to(out.dtype), self.down_bias.to(out.dtype)))
        return out + F.linear(inner, self.up.to(out.dtype), self.up_bias.to(out.dtype))
