"""Products by oneDNN: those of plain torch, and no less exact, whatever lies how in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.ops import product as module
from core.ops.product import COLUMNS, FEWEST_ROWS, PART, prefers_onednn, product
from tests.live import figure

ROUNDING = 2.5e-7  # what sums of PART products of float32 numbers are off by


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU that prefers it."""
    if not (torch.backends.mkldnn.is_available() and module._is_right()):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(module, "prefers_onednn", lambda: True)
    monkeypatch.setattr(module, "FEWEST_ROWS", 1)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("layout", ["rows", "columns", "rows apart", "columns apart"])
@pytest.mark.parametrize("start", ["none", "bias", "sum"])
@pytest.mark.parametrize(
    "rows, width, out", [(1, 8, 5), (7, PART, 64), (500, PART + 1, 1200), (400, 3 * PART, COLUMNS + 3), (9, 2000, 40)]
)
def test_no_less_exact_than_plain_torch(layout: str, start: str, rows: int, width: int, out: int, onednn: None) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, width + 5)[:, :width], torch.randn(out + 3, width + 4)
    weight = weight[:out, :width] if "apart" in layout else weight[:out, :width].contiguous()
    weight = weight.T.contiguous().T if layout == "columns" else weight
    if layout == "columns apart":
        weight = torch.randn(width + 2, out + 6)[:width, :out].T
    added = {"none": torch.zeros(out), "bias": torch.randn(out), "sum": torch.randn(rows, out)}[start]
    exact = added.double() + x.double() @ weight.double().T
    plain = error(added + x @ weight.T, exact)
    found = product(x, weight, None if start == "none" else added.clone())
    assert found.shape == exact.shape and error(found, exact) < 1.25 * max(plain, ROUNDING)


def test_few_rows_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "prefers_onednn", lambda: True)
    monkeypatch.setattr(module, "_by_tiles", lambda x, weight, start: x.new_zeros(len(x), len(weight)))
    few, many = (torch.ones(rows, 5) for rows in (FEWEST_ROWS - 1, FEWEST_ROWS))
    assert product(few, torch.ones(3, 5)).min() == 5 and product(many, torch.ones(3, 5)).max() == 0


def test_only_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cpu", lambda: "GenuineIntel")
    prefers_onednn.cache_clear()
    assert not prefers_onednn()
    monkeypatch.setattr(module, "_cpu", lambda: "AuthenticAMD")
    monkeypatch.setattr(module, "_by_tiles", lambda *_: torch.zeros(3, 5))
    prefers_onednn.cache_clear()
    assert not prefers_onednn(), "what gives other numbers is not taken"
    monkeypatch.undo()
    prefers_onednn.cache_clear()
    figure(f"products of this CPU are {'oneDNN' if prefers_onednn() else 'MKL'}'s")
