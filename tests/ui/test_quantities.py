"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from ui.i18n import Translator
from ui.quantities import bytes_text, count_text, duration_text, loss_text, moment_text, share_text, speed_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (269_000_000, "257 MiB"),
        (1.5 * 1024**4, "1.5 TiB"),
        (2**60, "1048576 TiB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (9_999, "9,999"), (10_000, "10.0 k"), (134_515_008, "134.5 M"), (7.2e12, "7200.0 B")]
)
def test_counts(count: float, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (194, "3 min 14 s"),
        (3661, "1 h 1 min"),
        (90_000, "1 d 1 h"),
        (-3, "0 s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds, Translator("en")) == text


@pytest.mark.parametrize("unknown", [None, math.inf, math.nan])
def test_unknown_durations_are_a_dash(unknown: float | None, t: Translator) -> None:
    assert duration_text(unknown, t) == "–"


def test_losses_and_speeds() -> None:
    assert [loss_text(value) for value in (None, 0.21336, math.nan)] == ["–", "0.2134", "NaN"]
    assert [speed_text(value) for value in (None, 8.26, 1234.5)] == ["–", "8.3", "1,234"]
    assert share_text(0.256) == "26 %" and share_text(0.00254, 2) == "0.25 %"
    assert [share_text(share) for share in (0.0, 0.997, 1.0, 1.3)] == ["0 %", "99 %", "100 %", "130 %"]
    assert share_text(0.9999, 1) == "99.9 %"
    assert moment_text(None) == "–"
