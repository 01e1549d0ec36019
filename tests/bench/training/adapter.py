"""The adapter that all sides start from, and its gradients under names that all sides share."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PLACE = re.compile(r"layers\.(\d+)\..*?(\w+_proj)\..*(lora_[AB])")
FILL = 0.02  # size of B, so that A has a gradient at the first step


def factors(model: Any) -> Iterator[tuple[str, Any]]:
    """Every trained LoRA factor as (layer.projection.factor, parameter), whoever injected it."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (found := _PLACE.search(name)):
            yield ".".join(found.groups()), parameter


def fill(model: Any) -> None:
    """Give every factor values that follow from its name alone."""
    import torch

    with torch.no_grad():
        for name, parameter in factors(model):
            draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            scale = parameter.shape[1] ** -0.5 if name.endswith("A") else FILL
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))


def save_gradients(model: Any, layers: int, path: Path) -> dict[str, Any]:
    """Write the gradients of the first, middle and last layer as float32, and count what has none."""
    from safetensors.torch import save_file

    chosen = {str(layer) for layer in (0, layers // 2, layers - 1)}
    own = dict(factors(model))
    missing = [name for name, parameter in own.items() if parameter.grad is None or not bool(parameter.grad.any())]
    kept = {
        name: parameter.grad.float().cpu().contiguous()
        for name, parameter in own.items()
        if name.split(".")[0] in chosen and parameter.grad is not None
    }
    save_file(kept, path)
    return {"file": str(path), "tensors": len(own), "without_gradient": len(missing)}


def largest_difference(path: str, exact: str) -> float:
    """The largest relative difference (Frobenius) of a gradient from the exact one of the same name."""
    import numpy as np
    from safetensors.numpy import load_file

    found, wanted = load_file(path), load_file(exact)
    norm = np.linalg.norm
    return max(float(norm(found[name] - value) / norm(value)) for name, value in wanted.items())
