"""The number formats: packing, bits, errors, and what must survive exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import ModelError
from core.quantize import kernels, nf4
from core.quantize.int8 import dequantize_rows, quantize_rows
from core.quantize.linear import LAYERS, Int8Linear, NF4Linear, QuantizedLinear
from core.quantize.nf4 import (
    codebook,
    dequantize_absmax,
    dequantize_blocks,
    quantize_absmax,
    quantize_blocks,
)
from core.quantize.size import packed_bytes

BNB = [  # the 16 constants of bitsandbytes' kernels
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
KINDS = pytest.mark.parametrize("kind", LAYERS)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def test_codebook_is_bitsandbytes() -> None:
    assert (codebook().double() - torch.tensor(BNB, dtype=torch.float64)).abs().max() < 1e-6
    assert codebook()[7] == 0 and codebook()[0] == -1 and codebook()[15] == 1


@pytest.mark.parametrize("shape", [(64,), (3, 64), (5, 7), (1, 1), (2, 65), (131, 129)])
def test_every_code_survives_packing(shape: tuple[int, ...]) -> None:
    """Weights that are codes already come back exactly, whatever is left over of a block or of a byte."""
    count = torch.Size(shape).numel()
    codes = torch.randint(16, (count,), generator=torch.Generator().manual_seed(1))
    codes[::64] = 15  # every block has its largest magnitude, 1
    values = codebook()[codes].view(shape)
    packed, absmax = quantize_blocks(values)
    assert packed.dtype == torch.uint8 and len(packed) == -(-count // 2) and len(absmax) == -(-count // 64)
    assert torch.equal(packed[: count // 2] >> 4, codes[: count // 2 * 2 : 2].to(torch.uint8))
    assert torch.equal(packed[: count // 2] & 15, codes[1::2].to(torch.uint8))
    assert torch.equal(dequantize_blocks(packed, absmax, count, torch.float32), values.reshape(-1))


def test_codes_are_the_nearest() -> None:
    weight = gaussian(64, 64)
    packed, absmax = quantize_blocks(weight)
    found = dequantize_blocks(packed, absmax, weight.numel(), torch.float32).view(-1, 64)
    grid = codebook()[None, None, :] * absmax[:, None, None]
    best = (weight.view(-1, 64, 1) - grid).abs().amin(2)
    assert torch.allclose((weight.view(-1, 64) - found).abs(), best, rtol=0, atol=1e-6)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = gaussian(33, 70)
    whole = NF4Linear(weight).dequantize(torch.float32)
    monkeypatch.setattr(nf4, "CHUNK_BLOCKS", 2)
    parts = NF4Linear(weight)
    assert torch.equal(parts.dequantize(torch.float32), whole)


def test_nf4_takes_4127_bits_a_parameter() -> None:
    layer = NF4Linear(gaussian(1024, 4096))
    bits = 8 * layer.weight_bytes / (1024 * 4096)
    assert abs(bits - 4.127) < 0.001
    assert abs(8 * Int8Linear(gaussian(1024, 4096)).weight_bytes / (1024 * 4096) - 8.0078) < 0.001


@KINDS
@pytest.mark.parametrize("shape", [(64, 64), (5, 7), (24, 16), (130, 127)])
def test_packed_bytes_are_those_of_the_buffers(kind: str, shape: tuple[int, int]) -> None:
    assert LAYERS[kind](gaussian(*shape)).weight_bytes == packed_bytes(kind, shape[1], shape[0])


def test_errors_on_gaussian_weights_are_those_of_the_paper() -> None:
    weight = gaussian(1024, 1024)
    packed, absmax = quantize_blocks(weight)
    single = dequantize_blocks(packed, absmax, weight.numel(), torch.float32).view_as(weight)
    double = NF4Linear(weight).dequantize(torch.float32)
    assert relative(single, weight) == pytest.approx(0.092, abs=0.003)
    assert relative(double, weight) == pytest.approx(0.092, abs=0.003)
    assert relative(double, single) == pytest.approx(0.0014, abs=0.0002)
    assert relative(Int8Linear(weight).dequantize(torch.float32), weight) < 0.01


@KINDS
def test_quantising_again_changes_no_code(kind: str) -> None:
    once = LAYERS[kind](gaussian(48, 96))
    twice = LAYERS[kind](once.dequantize(torch.float32))
    name = {"nf4": "packed", "int8": "codes"}[kind]
    assert torch.equal(once.get_buffer(name), twice.get_buffer(name))
    if kind == "int8":
        assert torch.equal(once.dequantize(torch.float32), twice.dequantize(torch.float32))
    else:  # the absmax lose their mean anew, within half a step of 1/127 of their spread
        assert relative(twice.dequantize(torch.float32), once.dequantize(torch.float32)) < 0.002


def test_blocks_without_double_quantisation_are_a_fixed_point() -> None:
    packed, absmax = quantize_blocks(gaussian(96, 64))
    value = dequantize_blocks(packed, absmax, 96 * 64, torch.float32)
    again, absmax_again = quantize_blocks(value)
    assert torch.equal(again, packed) and torch.equal(absmax_again, absmax)


@KINDS
def test_zero_stays_zero(kind: str) -> None:
    weight = gaussian(64, 128)
    weight[gaussian(64, 128, seed=1) > 0.5] = 0
    weight[3] = 0  # whole blocks
    found = LAYERS[kind](weight).dequantize(torch.float32)
    assert torch.equal(found[weight == 0], torch.zeros_like(found[weight == 0]))
    assert not LAYERS[kind](torch.zeros(8, 64)).dequantize(torch.float32).any()


def test_scales_never_become_negative() -> None:
    absmax = torch.tensor([1e-9, 5.0, 4.0, 1e-7])
    found = dequantize_absmax(quantize_absmax(absmax))
    assert (found >= 0).all() and (found - absmax).abs().max() < 0.02


@KINDS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_damaged_weights_are_refused(kind: str, bad: float) -> None:
    weight = gaussian(8, 64)
    weight[2, 5] = bad
    with pytest.raises(ModelError, match="NaN or infinity"):
        LAYERS[kind](weight)


@KINDS
def test_bfloat16_value_is_the_float32_one_rounded_once(kind: str) -> None:
    layer = LAYERS[kind](gaussian(32, 64))
    assert torch.equal(layer.dequantize(torch.bfloat16), layer.dequantize(torch.float32).bfloat16())


@KINDS
def test_casting_the_module_leaves_the_scales_alone(kind: str) -> None:
    layer: QuantizedLinear = LAYERS[kind](gaussian(32, 64), torch.ones(32))
    before = layer.dequantize(torch.float32)
    layer.to(torch.bfloat16)
    assert layer.dtype == torch.bfloat16 and layer.bias is not None and layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.double().dequantize(torch.float32), before) and layer.dtype == torch.float64


def test_int8_rows_keep_their_largest_value() -> None:
    weight = gaussian(16, 40)
    codes, absmax = quantize_rows(weight)
    found = dequantize_rows(codes, absmax, torch.float32)
    assert torch.equal(found.abs().amax(1), weight.abs().amax(1)) and codes.abs().max() == 127
    assert ((found - weight).abs() <= absmax[:, None] / 254 * 1.0001).all()


def test_bitsandbytes_agrees() -> None:
    """Its codes and scales are ours bit for bit, and its unpacking of our buffers gives our values."""
    functional: Any = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is an optional extra")
    weight = gaussian(96, 128)
    theirs, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    packed, absmax = quantize_blocks(weight)
    assert torch.equal(theirs.view(-1), packed) and torch.equal(state.absmax, absmax)
    ours = dequantize_blocks(packed, absmax, weight.numel(), torch.float32).view_as(weight)
    assert (kernels.by_bitsandbytes(packed, absmax, (96, 128), torch.float32) - ours).abs().max() < 1e-6
