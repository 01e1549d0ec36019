"""LoRA against loralib, the code of the paper: outputs, gradients, merging, start values' scale, in float64."""

from __future__ import annotations

from typing import Any

import loralib
import pytest
import torch
from torch import nn

from core.adapters import inject, merge
from core.config import AdapterConfig


def pair(theirs: Any, base: nn.Module, names: tuple[str, str]) -> Any:
    """Our adapter on the same base weight and with the same A and B as a layer of loralib."""
    theirs.double().train(False)
    with torch.no_grad():
        base.double().weight.copy_(theirs.weight)
        if getattr(theirs, "bias", None) is not None:
            base.bias.copy_(theirs.bias)  # type: ignore[union-attr, operator, arg-type]
        for factor in (theirs.lora_A, theirs.lora_B):
            factor.normal_(generator=torch.Generator().manual_seed(factor.shape[0]))
    ours = nn.Sequential(base)
    inject(ours, AdapterConfig(r=3, lora_alpha=6.0, target_modules=("0",)), seed=0)
    host: Any = ours[0]
    with torch.no_grad():
        for name, factor in zip(names, (theirs.lora_A, theirs.lora_B), strict=True):
            getattr(host.adapter("default"), name).copy_(factor)
    return ours, host.adapter("default")


def test_linear() -> None:
    torch.manual_seed(0)
    theirs = loralib.Linear(8, 6, r=3, lora_alpha=6, merge_weights=False)
    ours, adapter = pair(theirs, nn.Linear(8, 6), ("lora_A", "lora_B"))
    x = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=0)
    for model in (ours, theirs):
        model(x).square().sum().backward()
    torch.testing.assert_close(adapter.lora_A.grad, theirs.lora_A.grad, atol=1e-10, rtol=0)
    torch.testing.assert_close(adapter.lora_B.grad, theirs.lora_B.grad, atol=1e-10, rtol=0)
    merge(ours)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=0)


def test_embedding() -> None:
    torch.manual_seed(0)
    theirs = loralib.Embedding(9, 6, r=3, lora_alpha=6, merge_weights=False)
    ours, adapter = pair(theirs, nn.Embedding(9, 6), ("lora_A", "lora_B"))
    ids = torch.arange(9)
    torch.testing.assert_close(ours(ids), theirs(ids), atol=1e-12, rtol=0)
    for model in (ours, theirs):
        model(ids).square().sum().backward()
    torch.testing.assert_close(adapter.lora_A.grad, theirs.lora_A.grad, atol=1e-10, rtol=0)


def test_start_values_have_the_same_spread() -> None:
    """Uniform in +-1/sqrt(in) for A, zero for B."""
    torch.manual_seed(0)
    theirs = loralib.Linear(1024, 8, r=8)
    model = nn.Sequential(nn.Linear(1024, 8))
    inject(model, AdapterConfig(r=8, target_modules=("0",)), seed=0)
    host: Any = model[0]
    ours = host.adapter("default")
    assert ours.lora_A.abs().max() <= 1 / 32 and theirs.lora_A.abs().max() <= 1 / 32
    assert float(ours.lora_A.detach().std()) == pytest.approx(float(theirs.lora_A.detach().std()), rel=0.03)
    assert not ours.lora_B.any() and not theirs.lora_B.any()
