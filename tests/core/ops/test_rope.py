"""Rotary positions against their definition in float64, partial ones and strided heads too."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from core.ops.rope import rope, rope_reference


@pytest.mark.parametrize("width", [16, 10])
@pytest.mark.parametrize("rows", [1, 3])
def test_equals_its_definition(width: int, rows: int) -> None:
    x = torch.randn(3, 5, 7, 16, dtype=torch.float64).transpose(1, 2).requires_grad_()
    cos, sin = (torch.randn(rows, 7, width, dtype=torch.float64) for _ in range(2))
    found, expected = rope(x, cos, sin), rope_reference(x, cos, sin)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    g = torch.randn_like(expected)
    d_found, d_expected = (torch.autograd.grad(y, x, g)[0] for y in (found, expected))
    torch.testing.assert_close(d_found, d_expected, rtol=1e-13, atol=1e-13)


def test_equals_transformers() -> None:
    x, (cos, sin) = torch.randn(2, 7, 5, 16), (torch.randn(2, 7, 16) for _ in range(2))
    theirs, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cos, sin)
    torch.testing.assert_close(rope(x, cos, sin), theirs.transpose(1, 2))
