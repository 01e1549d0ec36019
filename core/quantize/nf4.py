"""4-bit NormalFloat with double quantisation (QLoRA, section 3), packed as bitsandbytes packs it.

A block of 64 weights is divided by its largest magnitude and each quotient becomes the nearest of 16 values, which are
quantiles of the normal distribution. The magnitudes ("absmax") lose their mean and become 8 bits each, in blocks of
256 with one float32 scale: 4 + 8/64 + 32/(64*256) = 4.127 bits a weight. The 8 bits are even steps, which err by a
third less here than the 8-bit floats of bitsandbytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import ModelError
from core.quantize.size import ABSMAX_BLOCK, NF4_BLOCK

OFFSET = 0.9677083  # bitsandbytes' outermost quantile: the mean of 1 - 1/(2*15) and 1 - 1/(2*16)
STEPS, ZERO = 127, 128  # codes of an absmax: 1 to 255, of which 128 is the mean
CHUNK_BLOCKS, CHUNK_BLOCKS_CUDA = 1 << 12, 1 << 17  # unpacked at once: 1 MiB of float32 stays in a CPU's cache


@dataclass(frozen=True)
class Absmax:
    """The absmax of all blocks in 8 bits: `mean + (code - 128) / 127 * scale`."""

    codes: Tensor  # (blocks,) uint8
    scales: Tensor  # (ceil(blocks / 256),) float32
    mean: Tensor  # () float32


@cache
def codebook() -> Tensor:
    """The 16 values of NF4, ascending from -1 to 1, with an exact 0; (16,) float32 on the CPU."""
    positive = torch.special.ndtri(torch.linspace(OFFSET, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -torch.special.ndtri(torch.linspace(OFFSET, 0.5, 8, dtype=torch.float64)[:-1])
    values = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive]).sort().values
    return (values / values.max()).float()


def quantize_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The packed codes, two a byte with the first in the high half, and the absmax of every block.

    `weight` has any shape; a last block that is not full is filled up with zeros. Raises ModelError for NaN.
    """
    flat = weight.detach().reshape(-1).float()
    blocks = _blocks(flat, NF4_BLOCK)
    absmax = blocks.abs().amax(1)
    check_finite(absmax)
    codes = torch.cat([_nearest(part, top) for part, top in _chunks(blocks, absmax)])
    pairs = codes.view(-1)[: len(flat) + len(flat) % 2].view(-1, 2)
    return (pairs[:, 0] << 4) | pairs[:, 1], absmax


def dequantize_blocks(packed: Tensor, absmax: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
    """The values of packed codes, (numel,): computed in float32 and rounded to `dtype` once."""
    table = pairs(packed.device)
    out = torch.empty(numel, dtype=dtype, device=packed.device)
    step = NF4_BLOCK * (CHUNK_BLOCKS_CUDA if packed.is_cuda else CHUNK_BLOCKS)
    for start in range(0, numel, step):
        count = min(step, numel - start)
        values = F.embedding(packed[start // 2 : (start + count + 1) // 2].int(), table).view(-1)
        full = _blocks(values, NF4_BLOCK)
        torch.mul(full, absmax[start // NF4_BLOCK : start // NF4_BLOCK + len(full), None], out=full)
        out[start : start + count] = full.view(-1)[:count]
    return out


def quantize_absmax(absmax: Tensor) -> Absmax:
    """Double quantisation: the absmax of all blocks, less their mean, in 8 bits."""
    mean = absmax.to("cpu", torch.float64).mean().to(absmax)  # the same on every device, whatever order it adds in
    centred = _blocks(absmax - mean, ABSMAX_BLOCK)
    scales = centred.abs().amax(1)
    codes = ((_divide(centred, scales) * STEPS).round_() + ZERO).to(torch.uint8).view(-1)[: len(absmax)]
    codes += (dequantize_absmax(Absmax(codes, scales, mean)) < 0).to(torch.uint8)  # rounded up: a sign must not flip
    return Absmax(codes, scales, mean)


def dequantize_absmax(absmax: Absmax) -> Tensor:
    """The scales of all blocks in float32."""
    values = F.embedding(absmax.codes.int(), steps(absmax.codes.device)).view(-1)
    full = _blocks(values, ABSMAX_BLOCK) * absmax.scales[:, None]
    return full.view(-1)[: len(values)] + absmax.mean


def check_finite(absmax: Tensor) -> None:
    """Raise ModelError when a weight that is to be quantised holds NaN or infinity."""
    if not torch.isfinite(absmax).all():
        raise ModelError("A weight of the model holds NaN or infinity.", "Download the model again.")


def _blocks(values: Tensor, size: int) -> Tensor:
    """A vector as rows of `size`, the last one filled up with zeros."""
    missing = -len(values) % size
    return (F.pad(values, (0, missing)) if missing else values).view(-1, size)


def _nearest(blocks: Tensor, absmax: Tensor) -> Tensor:
    values = codebook().to(blocks.device)
    return torch.bucketize(_divide(blocks, absmax), (values[1:] + values[:-1]) / 2, out_int32=True).to(torch.uint8)


def _divide(blocks: Tensor, absmax: Tensor) -> Tensor:
    """Every block by its largest magnitude; a block of zeros stays zeros."""
    return blocks / torch.where(absmax > 0, absmax, 1.0)[:, None]


def _chunks(blocks: Tensor, absmax: Tensor) -> zip[tuple[Tensor, Tensor]]:
    return zip(torch.split(blocks, CHUNK_BLOCKS), torch.split(absmax, CHUNK_BLOCKS), strict=True)


@cache
def steps(device: torch.device) -> Tensor:
    """What the 8-bit codes of an absmax stand for, in scales of its block; (256, 1) float32."""
    return ((torch.arange(256, dtype=torch.float32)[:, None] - ZERO) / STEPS).to(device)


@cache
def pairs(device: torch.device) -> Tensor:
    """The two values of every byte, (256, 2) float32: one look-up instead of two shifts and two look-ups."""
    byte = torch.arange(256)
    return torch.stack([codebook()[byte >> 4], codebook()[byte & 15]], 1).to(device)
