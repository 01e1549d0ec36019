"""Quantising the frozen base of a model, layer by layer, and what a weight is after that."""

from __future__ import annotations

import logging

import torch
from torch import nn

from core.adapters.targets import all_linear, base_modules
from core.conv1d import is_conv1d
from core.errors import ConfigError
from core.quantize import kernels
from core.quantize.linear import LAYERS, QuantizedLinear
from core.quantize.rounding import rounded_weight
from core.quantize.size import NF4, NONE, QUANTIZATIONS

logger = logging.getLogger(__name__)


def check_quantization(quantization: str) -> None:
    """Raise ConfigError for a kind that there is not."""
    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"quantization is {quantization!r}.", f"Pick one of: {', '.join(QUANTIZATIONS)}.")


def quantizable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that are quantised, by path: every Linear and Conv1D but the output layer."""
    modules = base_modules(model)
    paths = all_linear(model, modules)
    return {path: modules[path] for path in paths if _fits(modules[path])}


def _fits(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or is_conv1d(layer)


@torch.no_grad()
def quantize_model(model: nn.Module, quantization: str, device: str | torch.device | None = None) -> None:
    """Replace a model's layers by quantised ones, each on `device`, or else where it is.

    One layer at a time is there twice, so the peak is the memory of the dense model and of its largest layer.
    """
    check_quantization(quantization)
    if quantization == NONE:
        return
    kind = LAYERS[quantization]
    paths = list(quantizable(model))
    for path in paths:
        parent, _, leaf = path.rpartition(".")
        holder = model.get_submodule(parent)
        setattr(holder, leaf, kind.from_layer(holder.get_submodule(leaf).to(device)))
    kernel = (quantization == NF4 and _kernel(model)) or "plain PyTorch"
    logger.info("%d layers are quantised to %s and unpacked by %s", len(paths), quantization, kernel)


def _kernel(model: nn.Module) -> str:
    packed = (module.get_buffer("packed") for module in model.modules() if isinstance(module, QuantizedLinear))
    return next((kernels.name_of(each, torch.bfloat16) for each in packed), "")


def quantization_of(model: nn.Module) -> str:
    """How the base of a model is quantised: none, nf4 or int8."""
    return next((module.kind for module in model.modules() if isinstance(module, QuantizedLinear)), NONE)


@torch.no_grad()
def cast_model(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast what is not quantised; buffers, such as the frequencies of positions, stay as precise as they are."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.to(dtype)
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def round_model(model: nn.Module, quantization: str) -> None:
    """Give a dense model the weights' values of a quantised one."""
    for layer in quantizable(model).values() if quantization != NONE else ():
        weight = layer.get_parameter("weight")
        weight.copy_(rounded_weight(weight, quantization, is_conv1d(layer)))
