"""Merged weights against float64 sums rounded once: every value, also where float32 cannot tell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from core.adapters import inject
from core.adapters.merged_weight import _differing, merged_weight, round_once
from core.config import AdapterConfig
from tests.core.adapters.tiny import shake


def adapted(base: nn.Module, r: int, size: float) -> nn.Sequential:
    model = nn.Sequential(base)
    inject(model, AdapterConfig(r=r, target_modules=("0",)), seed=1)
    shake(model, size=size)
    return model


@pytest.mark.parametrize("columns", [5, 8])
@pytest.mark.parametrize("rows", [slice(0, 12), slice(1, 8), slice(3, 4)])
def test_where_two_tensors_differ(columns: int, rows: slice) -> None:
    """Several values are compared at once, also of blocks that begin in the middle of such a word."""
    one = torch.randn(12, columns, generator=torch.Generator().manual_seed(5)).bfloat16()
    other = one.clone()
    other.view(-1)[[0, 1, 7, 14, 17, 26, 33, 59]] += 1
    wanted = (one[rows] != other[rows]).flatten().nonzero().squeeze(1)
    assert torch.equal(_differing(one[rows], other[rows]), wanted) and len(wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("base", [nn.Linear(96, 160), Conv1D(160, 96), nn.Embedding(96, 160)])
@pytest.mark.parametrize("size", [1e-4, 0.05, 5.0])
def test_every_value_is_the_float64_sum_rounded_once(base: nn.Module, dtype: torch.dtype, size: float) -> None:
    host = adapted(base.to(torch.float32), 8, size)[0]
    weight = host.base_layer.weight.detach().to(dtype)
    adapter = host.adapter("default")
    want = round_once(weight.double() + adapter.delta_weight(), dtype)
    before = weight.clone()
    assert torch.equal(merged_weight(weight, [adapter]), want)
    assert torch.equal(weight, before)
    assert not torch.equal(want, weight) or size < 1e-3


def hairs(weight: Tensor) -> Tensor:
    """Changes that end within 1e-13 of the middle of two 16-bit numbers, on both sides of it."""
    above = torch.nextafter(weight, torch.full_like(weight, torch.inf)).double()
    side = torch.where(torch.rand(weight.shape, generator=torch.Generator().manual_seed(3)) < 0.5, 1.0, -1.0)
    return (above - weight.double()) / 2 + side * 1e-13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_next_to_a_tie_go_to_their_own_side(dtype: torch.dtype) -> None:
    """One column at a time holds such changes: few enough that they are looked at one by one."""
    weight = torch.linspace(0.5, 0.9, 40 * 64).reshape(40, 64).to(dtype)
    model = nn.Sequential(nn.Linear(64, 40, bias=False).double())
    inject(model, AdapterConfig(r=1, lora_alpha=1.0, target_modules=("0",)))
    adapter = model[0].adapter("default")
    change = torch.zeros(64, dtype=torch.float64)
    change[7] = 1.0
    with torch.no_grad():
        adapter.lora_A.copy_(change[None])
        adapter.lora_B.copy_(hairs(weight)[:, 7:8])
    want = round_once(weight.double() + adapter.delta_weight(), dtype)
    assert not torch.equal(want, (weight.float() + adapter.delta_weight().float()).to(dtype)), "float32 is not enough"
    assert torch.equal(merged_weight(weight, [adapter]), want)


def test_settings_that_make_float32_coarser_do_not_reach_the_sum() -> None:
    host = adapted(nn.Linear(96, 160), 8, 0.05)[0]
    weight = host.base_layer.weight.detach().bfloat16()
    want = merged_weight(weight, [host.adapter("default")])
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(merged_weight(weight, [host.adapter("default")]), want)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_several_adapters_are_rounded_together() -> None:
    model = adapted(nn.Linear(96, 160), 8, 0.05)
    inject(model, AdapterConfig(r=4, target_modules=("0",)), "second", seed=2)
    shake(model, "second")
    host = model[0]
    both = [host.adapter(name) for name in ("default", "second")]
    weight = host.base_layer.weight.detach().bfloat16()
    exact = weight.double() + both[0].delta_weight() + both[1].delta_weight()
    assert torch.equal(merged_weight(weight, both), round_once(exact, torch.bfloat16))
