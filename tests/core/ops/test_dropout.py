"""Dropout from a seed: the right share, the same mask backward, a new one every time, one that a device can hash."""

from __future__ import annotations

import torch

from core.ops.dropout import _hashes, draw_seed, dropout, dropout_reference, keep_mask


def test_the_backward_pass_draws_the_same_mask() -> None:
    x = torch.randn(50, 40, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    found = dropout(x, 0.3, is_training=True)
    torch.manual_seed(3)
    expected = dropout_reference(x, draw_seed(x.device), 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    g = torch.randn_like(x)
    d_found, d_expected = (torch.autograd.grad(y, x, g)[0] for y in (found, expected))
    torch.testing.assert_close(d_found, d_expected, rtol=1e-14, atol=0)
    assert 0.65 < float((found != 0).double().mean()) < 0.75


def test_masks_differ_and_follow_the_random_state() -> None:
    x = torch.ones(1000)
    torch.manual_seed(1)
    one, two = dropout(x, 0.5, is_training=True), dropout(x, 0.5, is_training=True)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5, is_training=True), one) and not torch.equal(one, two)


def test_off_outside_training() -> None:
    x = torch.ones(4)
    assert dropout(x, 0.5, is_training=False) is x and dropout(x, 0.0, is_training=True) is x


def test_hashed_masks_are_even_and_unrelated() -> None:
    """What other devices draw from: every bit half of the time, also given its neighbour and the seed next to it."""
    like = torch.empty(400, 250)
    one, two = (_hashes(torch.tensor([seed]), like) for seed in (7, 8))
    for bit in range(31):
        own, other = (one >> bit) & 1, (two >> bit) & 1
        assert abs(float(own.double().mean()) - 0.5) < 0.01
        assert abs(float((own == other).double().mean()) - 0.5) < 0.01
        assert abs(float((own[:, 1:] == own[:, :-1]).double().mean()) - 0.5) < 0.01
    assert abs(float(keep_mask(torch.tensor([7]), like, 0.1).mean()) - 0.9) < 0.01
