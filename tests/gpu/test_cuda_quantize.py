"""Quantised bases on a CUDA device: the CPU's values, bitsandbytes' kernel, and the memory that they save."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.adapters import inject
from core.config import AdapterConfig
from core.quantize import kernels
from core.quantize.linear import LAYERS, NF4Linear
from core.quantize.model import quantize_model
from core.quantize.nf4 import dequantize_absmax, quantize_absmax, quantize_blocks
from core.train import Trainer
from tests.core.toy import toy_config, toy_llama, toy_records, toy_tokenizer
from tests.live import figure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def choose(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let NF4 be unpacked by one kernel, or by plain operations."""
    if name == kernels.BITSANDBYTES:
        pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is an optional extra")
    monkeypatch.setattr(kernels, "name_of", lambda like, dtype: name if like.is_cuda else "")


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kernel", ["", kernels.TRITON])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("shape", [(96, 160), (33, 70), (33, 71), (2048, 2048)])
def test_the_gpu_packs_and_unpacks_as_the_cpu_does(
    kernel: str, kind: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kernels.name_of(weight(1).cuda(), torch.bfloat16)
    choose(kernel, monkeypatch)
    here, there = LAYERS[kind](weight(*shape)), LAYERS[kind](weight(*shape).cuda())
    for (name, ours), (_, theirs) in zip(here.named_buffers(), there.named_buffers(), strict=True):
        assert torch.equal(ours, theirs.cpu()), name
    for dtype in DTYPES:
        assert torch.equal(here.dequantize(dtype), there.dequantize(dtype).cpu())
        assert torch.equal(here.cuda().dequantize(dtype).cpu(), there.dequantize(dtype).cpu())
        here.cpu()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(96, 160), (33, 70), (2048, 2048)])
def test_bitsandbytes_kernel_gives_our_values(
    dtype: torch.dtype, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is an optional extra")
    dense = weight(*shape).cuda()
    layer = NF4Linear(dense)
    choose(kernels.BITSANDBYTES, monkeypatch)
    by_kernel = layer.dequantize(dtype).float()
    choose("", monkeypatch)
    ours = layer.dequantize(dtype).float()
    allowed = torch.finfo(dtype).eps * ours.abs() + 1e-6  # one step of the number format
    assert ((by_kernel - ours).abs() <= allowed).all()
    packed, absmax = quantize_blocks(dense)
    theirs, state = functional.quantize_4bit(dense, quant_type="nf4", blocksize=64)
    assert torch.equal(theirs.view(-1), packed) and torch.equal(state.absmax, absmax)
    rounded = dequantize_absmax(quantize_absmax(absmax))
    figure(f"double quantisation moves absmax by {float((rounded - absmax).norm() / absmax.norm()):.2%}")


@pytest.mark.parametrize("kind", LAYERS)
def test_bfloat16_training_learns_on_a_quantised_base(kind: str) -> None:
    model = toy_llama().to(torch.bfloat16)
    quantize_model(model, kind, "cuda")
    trainer = Trainer(model.cuda(), toy_tokenizer(), toy_records(), toy_config(epochs=20.0))
    losses = [step.loss for step in trainer.steps()]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert {parameter.dtype for parameter in trainer.parameters} == {torch.float32}


def test_a_stack_of_layers_takes_a_quarter_of_the_memory() -> None:
    def peak(kind: str) -> int:
        torch.cuda.empty_cache()
        start = torch.cuda.memory_allocated()
        stack = nn.Sequential(*(nn.Linear(2048, 2048, bias=False, dtype=torch.bfloat16) for _ in range(16)))
        quantize_model(stack, kind, "cuda")
        inject(stack.cuda(), AdapterConfig(r=8))
        torch.cuda.reset_peak_memory_stats()
        stack(torch.randn(64, 2048, device="cuda", dtype=torch.bfloat16, requires_grad=True)).sum().backward()
        return torch.cuda.max_memory_allocated() - start

    plain, nf4 = peak("none"), peak("nf4")
    figure(f"16 layers of 2048 x 2048, forward and backward: {plain / 2**20:.0f} MiB in bf16, {nf4 / 2**20:.0f} in NF4")
    assert nf4 < 0.6 * plain
