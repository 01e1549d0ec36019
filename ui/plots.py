"""Curves and bars as SVG strings: no script, no image, no library; their colours are CSS variables of the page.

The drawing area is stretched to its box (`preserveAspectRatio="none"` with strokes that do not scale) and all words
stand beside it as HTML, so that a plot is as readable on a phone as on a wide screen. Dots are zero-length strokes
with round caps, which stay round when the area is stretched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from studio.views import MetricPoint
from ui.fragments import esc
from ui.i18n import Translator
from ui.quantities import NOTHING, bytes_text, count_text, loss_text, share_text

WIDTH, HEIGHT = 1000, 400  # units of the drawing area
_HOVER_TARGETS = 120
_WIDEST_WINDOW = 40
_STROKE = 'fill="none" vector-effect="non-scaling-stroke"'


@dataclass(frozen=True)
class Scale:
    """Maps values to the drawing area: `low` to `start`, `high` to `end`; logarithmic when asked."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of `value`."""
        share = (self._of(value) - self._of(self.low)) / ((self._of(self.high) - self._of(self.low)) or 1.0)
        return self.start + share * (self.end - self.start)

    def _of(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, about `count` of them: 1, 2 or 5 times a power of ten apart."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 12) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten inside the range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]
    return found or [low, high]


def smooth(points: Sequence[MetricPoint]) -> list[MetricPoint]:
    """Mean over a window of about a twelfth of the points, centred, so that the line does not lag behind the data.

    Towards both ends the window shrinks evenly on both sides. Values that are not finite stay as they are.
    """
    finite = [point for point in points if math.isfinite(point.value)]
    sums = [0.0, *accumulate(point.value for point in finite)]
    widest = min(_WIDEST_WINDOW, max(1, len(finite) // 24))
    means = {}
    for place, point in enumerate(finite):
        reach = min(widest, place, len(finite) - 1 - place)
        means[point.step] = (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)
    return [MetricPoint(point.step, means.get(point.step, point.value)) for point in points]


def path_of(points: Sequence[MetricPoint], x: Scale, y: Scale) -> str:
    """The `d` of a line through the points, broken where a value is not finite."""
    parts, pen_down = [], False
    for point in points:
        if not math.isfinite(point.value):
            pen_down = False
            continue
        parts.append(f"{'L' if pen_down else 'M'}{x(point.step):.1f} {y(point.value):.1f}")
        pen_down = True
    return "".join(parts)


def loss_plot(
    metrics: Mapping[str, Sequence[MetricPoint]],
    t: Translator,
    *,
    log_y: bool = False,
    best_step: int | None = None,
    total_steps: int = 0,
) -> str:
    """Train loss, raw and smoothed, and validation loss over the steps, with the best step marked."""
    train, evaluated = metrics.get("loss", ()), metrics.get("eval_loss", ())
    values = [point.value for point in (*train, *evaluated) if math.isfinite(point.value)]
    if not values:
        return f'<div class="plot-empty">{esc(t("plot.no_points"))}</div>'
    x, y = _scales(train, evaluated, values, log_y, total_steps)
    y_ticks = log_ticks(y.low, y.high) if log_y else ticks(y.low, y.high)
    x_ticks = [tick for tick in ticks(x.low, x.high, 6) if tick == int(tick)]
    drawing = (
        _line(train, x, y, "plot-raw")
        + _grid(x, y, x_ticks, y_ticks)
        + _best_line(best_step, x)
        + _line(smooth(train), x, y, "plot-train")
        + _line(evaluated, x, y, "plot-eval")
        + _dots(evaluated, x, y, "plot-eval-dot")
        + _gaps(train, x)
        + _best_dot(best_step, evaluated, x, y)
        + _hover(train, evaluated, x, t)
    )
    caption = loss_caption(train, evaluated, best_step, t)
    return _figure(drawing, _y_labels(y, y_ticks), _x_labels(x, x_ticks, t), _legend(t, best_step), caption)


def loss_caption(
    train: Sequence[MetricPoint], evaluated: Sequence[MetricPoint], best_step: int | None, t: Translator
) -> str:
    """The picture in one sentence, for those who cannot see it and for those who copy it."""
    last = train[-1] if train else evaluated[-1]
    words = t("plot.caption_train", step=f"{last.step:,}", loss=loss_text(train[-1].value if train else None))
    best = next((point for point in evaluated if point.step == best_step), None)
    if best is not None:
        words += " " + t("plot.caption_best", loss=loss_text(best.value), step=f"{best.step:,}")
    return words


def _scales(
    train: Sequence[MetricPoint],
    evaluated: Sequence[MetricPoint],
    values: Sequence[float],
    log_y: bool,
    total_steps: int,
) -> tuple[Scale, Scale]:
    last = max(point.step for point in (*train, *evaluated))
    x = Scale(0, max(last, total_steps, 1), 0, WIDTH)
    low, high = min(values), max(values)
    if log_y:
        low = max(low, high * 1e-6, 1e-9)
        return x, Scale(low / 1.15, max(high, low) * 1.15, HEIGHT, 0, log=True)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    floor = 0.0 if 0 <= low < 0.35 * high else low - margin  # show the zero when it is near
    return x, Scale(floor, high + margin, HEIGHT, 0)


def _grid(x: Scale, y: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    across = "".join(f"M0 {y(tick):.1f}H{WIDTH}" for tick in y_ticks)
    up = "".join(f"M{x(tick):.1f} {HEIGHT}v-6" for tick in x_ticks)
    lines = f'<path class="plot-grid" d="{across}" {_STROKE}/>'
    return lines + f'<path class="plot-axis" d="M0 {HEIGHT}H{WIDTH}{up}" {_STROKE}/>'


def _line(points: Sequence[MetricPoint], x: Scale, y: Scale, kind: str) -> str:
    return f'<path class="{kind}" d="{path_of(points, x, y)}" {_STROKE}/>' if points else ""


def _dots(points: Sequence[MetricPoint], x: Scale, y: Scale, kind: str) -> str:
    finite = (point for point in points if math.isfinite(point.value))
    marks = "".join(f"M{x(point.step):.1f} {y(point.value):.1f}h.01" for point in finite)
    return f'<path class="{kind}" d="{marks}" {_STROKE}/>' if marks else ""


def _gaps(points: Sequence[MetricPoint], x: Scale) -> str:
    """A red line at every step whose loss is not a number: it must not simply vanish."""
    marks = "".join(f"M{x(point.step):.1f} 0V{HEIGHT}" for point in points if not math.isfinite(point.value))
    return f'<path class="plot-gap" d="{marks}" {_STROKE}><title>NaN</title></path>' if marks else ""


def _best_line(best_step: int | None, x: Scale) -> str:
    return "" if best_step is None else f'<path class="plot-best" d="M{x(best_step):.1f} 0V{HEIGHT}" {_STROKE}/>'


def _best_dot(best_step: int | None, evaluated: Sequence[MetricPoint], x: Scale, y: Scale) -> str:
    return _dots([point for point in evaluated if point.step == best_step], x, y, "plot-best-dot")


def _hover(train: Sequence[MetricPoint], evaluated: Sequence[MetricPoint], x: Scale, t: Translator) -> str:
    """Invisible columns whose tooltip tells the figures under the pointer."""
    points = train or evaluated
    every = max(1, math.ceil(len(points) / _HOVER_TARGETS))
    chosen = points[::every]
    losses = {point.step: point.value for point in evaluated}
    edges = [0.0, *(x((a.step + b.step) / 2) for a, b in pairwise(chosen)), x(chosen[-1].step) + 4]
    columns = []
    for point, left, right in zip(chosen, edges[:-1], edges[1:], strict=True):
        near = [step for step in losses if step <= point.step]
        words = t("plot.tooltip", step=f"{point.step:,}", loss=loss_text(point.value))
        if near and train:
            words += " · " + t("plot.tooltip_eval", loss=loss_text(losses[max(near)]))
        box = f'x="{left:.1f}" width="{max(1.0, right - left):.1f}" height="{HEIGHT}"'
        columns.append(f'<rect class="plot-hit" {box}><title>{esc(words)}</title></rect>')
    return "".join(columns)


def _y_labels(y: Scale, y_ticks: Sequence[float]) -> str:
    return "".join(f'<span style="top:{100 * y(tick) / HEIGHT:.2f}%">{tick:g}</span>' for tick in y_ticks)


def _x_labels(x: Scale, x_ticks: Sequence[float], t: Translator) -> str:
    labels = "".join(f'<span style="left:{x(tick) / WIDTH * 100:.2f}%">{count_text(tick)}</span>' for tick in x_ticks)
    return f"{labels}<em>{esc(t('plot.steps'))}</em>"


def _legend(t: Translator, best_step: int | None) -> str:
    entries = [("plot-train", "plot.train"), ("plot-raw", "plot.raw"), ("plot-eval", "plot.eval")]
    if best_step is not None:
        entries.append(("plot-best", "plot.best"))
    return "".join(f"<li>{_swatch(kind)}{esc(t(key))}</li>" for kind, key in entries)


def _swatch(kind: str) -> str:
    return f'<svg viewBox="0 0 22 8" aria-hidden="true"><line class="{kind}" x1="1" y1="4" x2="21" y2="4"/></svg>'


def _figure(drawing: str, y_labels: str, x_labels: str, legend: str, caption: str) -> str:
    return (
        f'<figure class="plot"><ul class="plot-legend">{legend}</ul>'
        f'<div class="plot-y" aria-hidden="true">{y_labels}</div>'
        f'<svg class="plot-area" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{esc(caption)}"><title>{esc(caption)}</title>{drawing}</svg>'
        f'<div class="plot-x" aria-hidden="true">{x_labels}</div><figcaption>{esc(caption)}</figcaption></figure>'
    )


def score_figure(curves: Mapping[str, Sequence[MetricPoint]], t: Translator) -> str:
    """Shares from 0 to 1 over the steps, one line for each name, all on one scale."""
    last = max(point.step for points in curves.values() for point in points)
    x, y = Scale(0, max(last, 1), 0, WIDTH), Scale(0, 1, HEIGHT, 0)
    shares, steps = ticks(0, 1), [tick for tick in ticks(0, max(last, 1), 6) if tick == int(tick)]
    lines, legend = [], []
    for place, (name, points) in enumerate(curves.items()):
        kind = f"score-{place % 6}"
        lines.append(_line(points, x, y, kind) + _dots(points, x, y, f"{kind} score-dot"))
        legend.append(f"<li>{_swatch(kind)}{esc(name)}</li>")
    caption = ", ".join(f"{name}: {share_text(points[-1].value, 1)}" for name, points in curves.items())
    drawing = _grid(x, y, steps, shares) + "".join(lines)
    return _figure(drawing, _y_labels(y, shares), _x_labels(x, steps, t), "".join(legend), caption)


def memory_bar(memory: Mapping[str, int], total: int, free: int, t: Translator) -> str:
    """What a run will hold in memory, part by part, against what is free; the figures stand beside it."""
    full = max(total, free, 1)
    x, parts, legend = 0.0, [], []
    for place, (name, size) in enumerate(memory.items()):
        width = WIDTH * size / full
        word = t.known(f"memory.{name}", name)
        words = f"{word}: {bytes_text(size)}"
        parts.append(
            f'<rect class="part part-{place % 6}" x="{x:.1f}" width="{max(width, 1.5):.1f}" height="24">'
            f"<title>{esc(words)}</title></rect>"
        )
        legend.append(f'<li><i class="swatch part-{place % 6}"></i>{esc(word)}<b>{bytes_text(size)}</b></li>')
        x += width
    edge = WIDTH * free / full
    limit = f'<path class="memory-limit" d="M{edge:.1f} -4V28" {_STROKE}><title>{esc(t("memory.free"))}</title></path>'
    caption = t("memory.caption", need=bytes_text(total), free=bytes_text(free), share=_share_of(total, free))
    return (
        f'<figure class="memory"><svg viewBox="0 -4 {WIDTH} 32" preserveAspectRatio="none" role="img" '
        f'aria-label="{esc(caption)}">'
        f'<rect class="memory-free" width="{edge:.1f}" height="24"/>{"".join(parts)}{limit}</svg>'
        f'<figcaption>{esc(caption)}</figcaption><ul class="legend">{"".join(legend)}</ul></figure>'
    )


def _share_of(total: int, free: int) -> str:
    return share_text(total / free) if free else NOTHING


def target_bars(parameters: Mapping[str, int], t: Translator) -> str:
    """Trainable parameters of every kind of layer, as bars with figures."""
    most = max(parameters.values(), default=0) or 1
    rows = "".join(
        f'<li><span>{esc(name)}</span><svg viewBox="0 0 {WIDTH} 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="bar" width="{WIDTH * count / most:.1f}" height="10"/></svg><b>{count_text(count)}</b></li>'
        for name, count in parameters.items()
    )
    return f'<ul class="bars" aria-label="{esc(t("plot.target_bars"))}">{rows}</ul>'
