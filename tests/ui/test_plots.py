"""Plots: right coordinates, honest gaps, bounded size, nothing hostile gets through."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from studio.views import MetricPoint
from ui.i18n import Translator
from ui.plots import HEIGHT, WIDTH, Scale, log_ticks, loss_plot, memory_bar, path_of, smooth, target_bars, ticks


def points(*values: float) -> list[MetricPoint]:
    return [MetricPoint(step, value) for step, value in enumerate(values, 1)]


def parsed(markup: str) -> ElementTree.Element:
    """The markup is well-formed, or this raises."""
    return ElementTree.fromstring(f"<root>{markup}</root>")


def svg_path(markup: str, kind: str) -> str:
    """The line in the drawing, not its swatch in the legend, which comes first."""
    return [node.attrib["d"] for node in parsed(markup).iter("path") if node.attrib.get("class") == kind][-1]


def test_scale_maps_the_ends_linear_and_logarithmic() -> None:
    assert Scale(0, 10, 0, 100)(5) == 50
    assert Scale(1, 100, 200, 0, log=True)(10) == pytest.approx(100)
    assert Scale(3, 3, 0, 100)(3) == 0  # no division by zero


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.13, 0.31, [0.15, 0.2, 0.25, 0.3]), (5, 5, [5]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_log_ticks_stay_inside() -> None:
    assert log_ticks(0.05, 3) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2])
    assert log_ticks(0.3, 0.4) == [0.3, 0.4]


def test_smooth_does_not_move_a_straight_line() -> None:
    line = points(*[3.0 - 0.02 * step for step in range(100)])
    assert [p.value for p in smooth(line)] == pytest.approx([p.value for p in line])


def test_smooth_calms_noise_and_keeps_its_mean() -> None:
    noisy = points(*[1.0 + (0.5 if step % 2 else -0.5) for step in range(200)])
    calm = smooth(noisy)[20:-20]
    assert max(abs(p.value - 1.0) for p in calm) < 0.1


def test_smooth_survives_nan() -> None:
    broken = smooth(points(1.0, math.nan, 1.0))
    assert math.isnan(broken[1].value)
    assert [broken[0].value, broken[2].value] == [1.0, 1.0]


def test_path_breaks_at_nan_instead_of_drawing_through_it() -> None:
    x, y = Scale(1, 4, 0, 30), Scale(0, 10, 100, 0)
    assert path_of(points(0, 10, math.nan, 5), x, y) == "M0.0 100.0L10.0 0.0M30.0 50.0"


def test_loss_plot_draws_every_series_with_caption_and_tooltips(t: Translator) -> None:
    metrics = {"loss": points(2.0, 1.5, 1.0, 0.8), "eval_loss": [MetricPoint(2, 1.6), MetricPoint(4, 0.9)]}
    markup = loss_plot(metrics, t, best_step=4, total_steps=8)
    root = parsed(markup)
    classes = {node.attrib.get("class") for node in root.iter("path")}
    expected = {
        "plot-grid",
        "plot-axis",
        "plot-raw",
        "plot-train",
        "plot-eval",
        "plot-eval-dot",
        "plot-best",
        "plot-best-dot",
    }
    assert expected <= classes
    caption = next(root.iter("figcaption")).text or ""
    assert "0.8000" in caption and "0.9000" in caption
    titles = [node.text or "" for node in root.iter("title")]
    assert any("1.5000" in title and "1.6000" in title for title in titles)
    # The last of 4 steps stands at the middle of an axis that reaches to 8.
    assert re.findall(r"[ML]([\d.]+)", svg_path(markup, "plot-raw"))[-1] == f"{WIDTH / 2:.1f}"


def test_loss_plot_stays_inside_its_area(t: Translator) -> None:
    for log_y in (False, True):
        markup = loss_plot({"loss": points(1e-4, 50.0, 3.0)}, t, log_y=log_y)
        heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.-]+)", svg_path(markup, "plot-raw"))]
        assert len(heights) == 3 and all(0 <= y <= HEIGHT for y in heights)


def test_nan_shows_as_a_mark(t: Translator) -> None:
    assert "plot-gap" in loss_plot({"loss": points(1.0, math.nan)}, t)
    assert "plot-gap" not in loss_plot({"loss": points(1.0, 0.9)}, t)


def test_no_points_says_so(t: Translator) -> None:
    for metrics in ({}, {"loss": []}, {"loss": points(math.nan)}):
        assert t("plot.no_points") in loss_plot(metrics, t)


def test_thousand_points_stay_small(t: Translator) -> None:
    markup = loss_plot({"loss": points(*[1 / step for step in range(1, 1001)])}, t)
    assert len(markup) < 80_000
    assert markup.count('class="plot-hit"') <= 120


def test_memory_bar_tells_every_part_and_escapes_names(t: Translator) -> None:
    markup = memory_bar({"weights": 2**30, "<script>": 2**20}, 2**30 + 2**20, 2**31, t)
    parsed(markup)
    assert "1.0 GiB" in markup and "1.0 MiB" in markup and "50 %" in markup
    assert "<script>" not in markup


def test_memory_bar_larger_than_free_puts_the_limit_inside(t: Translator) -> None:
    markup = memory_bar({"weights": 200}, 200, 100, t)
    assert f"M{WIDTH / 2:.1f} -4V28" in markup


def test_target_bars_are_proportional(t: Translator) -> None:
    widths = re.findall(r'class="bar" width="([\d.]+)"', target_bars({"q_proj": 100, "k_proj": 25}, t))
    assert [float(width) for width in widths] == [WIDTH, WIDTH / 4]
    parsed(target_bars({}, t))
