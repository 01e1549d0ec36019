"""The two pictures of a task as SVG, readable on light and on dark pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from tests.bench.comparison.summary import LOSS, Row

WIDTH, LEFT, RIGHT = 860, 250, 40
LINE = 24  # height of a row of dots
STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #1f2937 } .small { font-size: 11px; fill: #6b7280 }
.grid { stroke: #e5e7eb } .dot { fill: #4f46e5 } .seed { fill: #4f46e5; opacity: .35 } .bar { stroke: #4f46e5 }
.usual .dot, .usual .seed { fill: #d97706 } .usual .bar { stroke: #d97706 }
@media (prefers-color-scheme: dark) {
  text { fill: #e5e7eb } .small { fill: #9ca3af } .grid { stroke: #374151 } .dot, .seed { fill: #a5b4fc }
  .bar { stroke: #a5b4fc } .usual .dot, .usual .seed { fill: #fbbf24 } .usual .bar { stroke: #fbbf24 }
}
</style>"""

Place = Callable[[float], float]


def ranking(rows: Sequence[Row], heading: str) -> str:
    """How good each variant is, the best on top: the mean, its standard deviation, and every seed."""
    values = [value for row in rows for value in row.main.values]
    place = _axis(min(values), max(values), LEFT, WIDTH - RIGHT)
    parts = [_text(LEFT, 20, heading)]
    height = 60 + LINE * len(rows)
    parts += _grid(min(values), max(values), place, 34, height - 24)
    for number, row in enumerate(rows):
        y = 50 + LINE * number
        dots = "".join(f'<circle class="seed" cx="{place(v):.1f}" cy="{y}" r="3"/>' for v in row.main.values)
        reach = 0.0 if math.isnan(row.main.deviation) else row.main.deviation
        ends = place(max(row.main.mean - reach, min(values))), place(min(row.main.mean + reach, max(values)))
        bar = f'<line class="bar" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y}" y2="{y}" stroke-width="2"/>'
        mean = f'<circle class="dot" cx="{place(row.main.mean):.1f}" cy="{y}" r="5"/>'
        label = _text(LEFT - 12, y + 4, row.title, 'text-anchor="end"')
        parts.append(_group(row, label + bar + dots + mean))
    return _svg(height, parts)


def by_size(rows: Sequence[Row], heading: str) -> str:
    """Quality over trained parameters, both on a logarithmic scale."""
    height, left = 460, 70
    sizes, losses = [row.parameters for row in rows], [row.main.mean for row in rows]
    x = _axis(min(sizes), max(sizes), left, WIDTH - 150)
    y = _axis(min(losses), max(losses), *((60, height - 60) if rows[0].measure == LOSS else (height - 60, 60)))
    parts = [_text(left, 20, heading), _text(left, height - 12, "trained parameters", 'class="small"')]
    for size in _powers(min(sizes), max(sizes)):
        parts.append(f'<line class="grid" x1="{x(size):.1f}" x2="{x(size):.1f}" y1="40" y2="{height - 44}"/>')
        parts.append(_text(x(size), height - 30, _short(size), 'class="small" text-anchor="middle"'))
    taken: list[tuple[float, float]] = []
    for row in rows:
        at = x(row.parameters), y(row.main.mean)
        mark = (
            f'<circle class="dot" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="5"><title>{escape(row.title)}</title></circle>'
        )
        label = _text(at[0] + 9, at[1] + 4, row.title, 'class="small"') if _is_free(at, taken) else ""
        parts.append(_group(row, mark + label))
    for loss in (min(losses), max(losses)):
        parts.append(_text(left - 10, y(loss) + 4, f"{loss:.2f}", 'class="small" text-anchor="end"'))
    return _svg(height, parts)


def _axis(low: float, high: float, start: float, end: float) -> Place:
    """A logarithmic scale; losses far above the rest would flatten these otherwise."""
    first, span = math.log(low), (math.log(high) - math.log(low)) or 1.0
    return lambda value: start + (math.log(value) - first) / span * (end - start)


def _grid(low: float, high: float, place: Place, top: float, bottom: float) -> list[str]:
    steps = [low * (high / low) ** (share / 4) for share in range(5)]
    lines = [f'<line class="grid" x1="{place(s):.1f}" x2="{place(s):.1f}" y1="{top}" y2="{bottom}"/>' for s in steps]
    words = [_text(place(s), bottom + 16, f"{s:.3g}", 'class="small" text-anchor="middle"') for s in steps]
    return lines + words


def _is_free(at: tuple[float, float], taken: list[tuple[float, float]]) -> bool:
    """Whether a label fits beside a dot; the better variant has its name shown, the others have it as a tooltip."""
    is_free = all(abs(x - at[0]) >= 150 or abs(y - at[1]) >= 12 for x, y in taken)
    if is_free:
        taken.append(at)
    return is_free


def _powers(low: float, high: float) -> list[int]:
    return [10**power for power in range(1, 13) if low <= 10**power <= high]


def _short(size: int) -> str:
    return next(
        (f"{size // unit} {sign}" for unit, sign in ((10**9, "B"), (10**6, "M"), (10**3, "k")) if size >= unit),
        str(size),
    )


def _group(row: Row, inner: str) -> str:
    usual = ' class="usual"' if row.variant == "lora" else ""
    return f"<g{usual}>{inner}</g>"


def _text(x: float, y: float, words: str, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {extra}>{escape(words)}</text>'


def _svg(height: int, parts: Sequence[str]) -> str:
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    return "\n".join([start, STYLE, *parts, "</svg>"]) + "\n"
