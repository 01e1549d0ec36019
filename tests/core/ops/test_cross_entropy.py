"""Cross entropy in the memory of its logits, against torch's in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from core.ops.cross_entropy import cross_entropy

IGNORED = -100


def plain(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The losses and their gradients, by torch."""
    leaf = logits.clone().requires_grad_()
    losses = F.cross_entropy(leaf, targets, reduction="none", ignore_index=IGNORED)
    return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]


def drawn(scale: float) -> tuple[Tensor, Tensor]:
    """Logits of which most rows are sure of their target, as those of a trained model are, and targets."""
    torch.manual_seed(0)
    logits = scale * torch.randn(60, 5000, dtype=torch.float64) + 3
    targets = torch.randint(0, 5000, (60,))
    targets[:40] = logits[:40].argmax(1)
    targets[::7] = IGNORED
    return logits, targets


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_losses_and_gradients_are_exact(scale: float) -> None:
    logits, targets = drawn(scale)
    losses, gradients = plain(logits, targets)
    found = cross_entropy(logits, targets)
    torch.testing.assert_close(found, losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logits, gradients, rtol=1e-10, atol=1e-14)
    assert not logits[::7].any() and not found[::7].any()


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_in_float32_it_is_no_less_exact_than_torch(scale: float) -> None:
    logits, targets = drawn(scale)
    _, exact = plain(logits, targets)
    _, torchs = plain(logits.float(), targets)
    own = logits.float()
    cross_entropy(own, targets)
    ours, theirs = ((each.double() - exact).norm() / exact.norm() for each in (own, torchs))
    assert ours <= 1.05 * theirs and ours < 4e-7


def test_what_is_not_finite_shows() -> None:
    logits, targets = drawn(1.0)
    logits[3, 5] = float("nan")
    losses = cross_entropy(logits, targets)
    assert losses.isnan().nonzero().flatten().tolist() == [3]
