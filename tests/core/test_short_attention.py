"""Attention of short examples as whole matrices, against torch's own, example by example."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from core.packed_attention import NotPackable, _mask, _parts, _Settings
from core.short_attention import MOST_SEEN, Part, is_short, short_attention

RUNS = [(5, 3), (7, 1), (4, 2)]  # length, how many
WIDTH = 8


def tensors(dtype: torch.dtype, heads: int, groups: int, prefix: int, apart: bool) -> list[Tensor]:
    """q, k and v (1, H, T, D), as views of (1, T, H, D) or as they are."""
    torch.manual_seed(heads + prefix)
    total = prefix + sum(length * count for length, count in RUNS)
    made = [torch.randn(1, total, each, WIDTH).to(dtype).requires_grad_() for each in (heads, groups, groups)]
    return [each.transpose(1, 2).contiguous() if apart else each.transpose(1, 2) for each in made]


def reference(q: Tensor, k: Tensor, v: Tensor, prefix: int, window: int, scaling: float) -> Tensor:
    """Every example by itself behind the beginning, (1, T, H, D)."""
    settings = _Settings(scaling, window, 0.0, 0.0)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = _mask(q.shape[2], k.shape[2], q.detach(), settings)
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scaling, enable_gqa=True)

    out = [attend(*(each[:, :, :prefix] for each in (q, k, v)))] if prefix else []
    start = prefix
    for length in (length for length, count in RUNS for _ in range(count)):
        own = slice(start, start + length)
        seen = [torch.cat([each[:, :, :prefix], each[:, :, own]], 2) for each in (k, v)]
        out.append(attend(q[:, :, own], *seen))
        start += length
    return torch.cat(out, 2).transpose(1, 2)


def short(q: Tensor, k: Tensor, v: Tensor, prefix: int, window: int, scaling: float) -> Tensor:
    parts = _parts(q, k, RUNS, prefix, _Settings(scaling, window, 0.0, 0.0))
    return short_attention(q, k, v, parts, scaling)


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize("apart", [False, True])
def test_outputs_and_gradients_are_those_of_torchs_own(
    prefix: int, window: int, heads: int, groups: int, apart: bool
) -> None:
    own = tensors(torch.float64, heads, groups, prefix, apart)
    found, wanted = (form(*own, prefix, window, 0.3) for form in (short, reference))
    torch.testing.assert_close(found, wanted, atol=1e-14, rtol=1e-12)
    out = torch.randn(found.shape, dtype=torch.float64)
    found, wanted = (torch.autograd.grad(each, own, out) for each in (found, wanted))
    torch.testing.assert_close(found, wanted, atol=1e-14, rtol=1e-11)


def test_16_bit_numbers_are_rounded_once() -> None:
    """No further from the exact values than torch's kernel is with the same numbers widened."""
    own = [each.detach().requires_grad_() for each in tensors(torch.bfloat16, 6, 2, 3, False)]
    out = torch.randn(1, own[0].shape[2], 6, WIDTH).bfloat16()
    exact = [each.detach().double().requires_grad_() for each in own]
    truth = reference(*exact, 3, 0, 0.3)
    truths = [truth.detach(), *torch.autograd.grad(truth, exact, out.double())]
    errors = []
    for form in (short, lambda *given: reference(*(each.float() for each in given[:3]), *given[3:]).bfloat16()):
        made = form(*own, 3, 0, 0.3)
        several = [made.detach(), *torch.autograd.grad(made, own, out)]
        errors.append([float((one - other).norm() / other.norm()) for one, other in zip(several, truths, strict=True)])
    assert all(found <= 1.001 * wanted for found, wanted in zip(*errors, strict=True)), errors


def test_a_row_of_another_length_is_refused() -> None:
    """Positions of no example would be left as the memory was."""
    q, k, _ = tensors(torch.bfloat16, 6, 2, 3, False)
    assert len(_parts(q, k, RUNS, 3, _Settings(0.3, 0, 0.0, 0.0))) == 1 + len(RUNS)
    with pytest.raises(NotPackable, match="another sequence"):
        _parts(q, k, RUNS[:-1], 3, _Settings(0.3, 0, 0.0, 0.0))


def test_what_is_short() -> None:
    q, k = torch.zeros(1, 4, 9, 8, dtype=torch.bfloat16), torch.zeros(1, 2, 9, 8, dtype=torch.bfloat16)
    assert is_short(q, k, k, MOST_SEEN) and not is_short(q, k, k, MOST_SEEN + 1)
    assert not is_short(q.float(), k.float(), k.float(), 9) and not is_short(q, k, k[..., :4], 9)
    assert Part(0, 1, 5, 3, torch.zeros(10, 8)).seen == 8
