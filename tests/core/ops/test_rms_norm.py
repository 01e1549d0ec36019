"""RMSNorm against its definition in float64, and against transformers' own in float32."""

from __future__ import annotations

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from core.ops.recognition import read_layer
from core.ops.rms_norm import Norm, norm_backward, norm_forward, rms_norm, rms_norm_reference
from tests.core.ops.families import tiny


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_equals_its_definition(offset: float) -> None:
    x = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    norm = Norm(torch.randn(16, dtype=torch.float64), 1e-5, offset)
    g = torch.randn_like(x)
    found, expected = rms_norm(x, norm), rms_norm_reference(x, norm)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    d_found, d_expected = (torch.autograd.grad(y, x, g)[0] for y in (found, expected))
    torch.testing.assert_close(d_found, d_expected, rtol=1e-12, atol=1e-12)


def test_what_passes_the_norm_is_added() -> None:
    x, g, residual = (torch.randn(7, 16, dtype=torch.float64) for _ in range(3))
    norm = Norm(torch.randn(16, dtype=torch.float64), 1e-5)
    _, rstd = norm_forward(x, norm, x.dtype)
    alone = norm_backward(g, x, rstd, norm)
    torch.testing.assert_close(norm_backward(g, x, rstd, norm, residual), alone + residual, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("kind", "offset"), [(LlamaRMSNorm, 0.0), (Gemma3RMSNorm, 1.0)])
def test_equals_transformers(kind: type, offset: float) -> None:
    module = kind(32)
    torch.nn.init.normal_(module.weight)
    x = torch.randn(4, 32)
    torch.testing.assert_close(rms_norm(x, Norm(module.weight.detach(), 1e-6, offset)), module(x))


def test_a_norm_that_is_read_again_has_the_memory_that_recorded_graphs_read() -> None:
    layer = tiny("Llama").model.layers[0]
    first, again = (read_layer(layer).mlp.norm for _ in range(2))
    gain = first.gain(torch.float32)
    assert again is not first and again.gain(torch.float32) is gain
    doubled = 2 * gain
    with torch.no_grad():
        layer.post_attention_layernorm.weight.mul_(2)
    torch.testing.assert_close(again.gain(torch.float32), doubled)
