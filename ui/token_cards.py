"""A dataset as the tokens that a model sees, and their numbers, as HTML and SVG."""

from __future__ import annotations

from collections.abc import Iterable

from studio.views import LengthsView, TokenRow
from ui.fragments import callout, esc, readings
from ui.i18n import Translator
from ui.plots import HEIGHT, WIDTH, Scale, ticks
from ui.quantities import count_text, share_text

_STROKE = 'fill="none" vector-effect="non-scaling-stroke"'
_MARKED = ("50", "95", "99")
_SHOWN_PIECES = 1500  # of one row


def token_rows(rows: Iterable[TokenRow], t: Translator) -> str:
    """Every token of the rows: plain where the model only reads, marked where it learns, struck out where it is cut."""
    return f'{_legend(t)}<ol class="preview tokens">{"".join(_row(row, t) for row in rows)}</ol>'


def _row(row: TokenRow, t: Translator) -> str:
    if row.error:
        body = callout("error", t.sentence(row.error), t.sentence(row.fix), t)
    else:
        share = share_text(row.trained / row.tokens if row.tokens else 0.0)
        figures = t("tokens.row", tokens=f"{row.tokens:,}", trained=f"{row.trained:,}", share=share)
        figures = f"{t(f'role.{row.answer}')} · {figures}" if row.answer else figures
        shown = "".join(_piece(text, state) for text, state in row.pieces[:_SHOWN_PIECES])
        more = f" … +{len(row.pieces) - _SHOWN_PIECES:,}" if len(row.pieces) > _SHOWN_PIECES else ""
        body = f'<p class="caption">{esc(figures)}</p><div class="words" dir="auto">{shown}{more}</div>'
    return f'<li><span class="row-number">{row.row:,}</span><div class="bubbles">{body}</div></li>'


def _piece(text: str, state: str) -> str:
    """One token; a line end is shown as a sign, and then ends the line."""
    shown = esc(text).replace("\n", "<i>⏎</i>\n")
    return f'<span class="token token-{esc(state)}">{shown}</span>'


def _legend(t: Translator) -> str:
    entries = "".join(
        f'<li><span class="token token-{state}">abc</span>{esc(t(f"tokens.{state}"))}</li>'
        for state in ("prompt", "trained", "cut")
    )
    return f'<ul class="plot-legend">{entries}</ul>'


def length_card(found: LengthsView, t: Translator) -> str:
    """The rows' lengths as a histogram with percentiles and the cut, and what an epoch trains, in figures."""
    scale = found.of / max(1, found.rows + found.refused)
    values = {
        t("tokens.epoch"): count_text(round(found.tokens * scale)),
        t("tokens.trained_epoch"): f"{count_text(round(found.trained * scale))} · "
        + share_text(found.trained / found.tokens if found.tokens else 0.0),
        t("tokens.median"): f"{found.percentiles['50']:,}",
        t("tokens.longest"): f"{found.percentiles['100']:,}",
        t("tokens.cut_rows"): f"{found.cut_rows:,} · {share_text(found.cut_rows / max(1, found.rows))}",
        t("tokens.lost_rows"): f"{found.lost_rows:,}",
    }
    refused = ""
    if found.refused:
        refused = callout("error", t("tokens.refused", n=f"{found.refused:,}"), t.sentence(found.refusal), t)
    return refused + readings(values) + _histogram(found, t)


def length_caption(found: LengthsView, t: Translator) -> str:
    """The picture in words."""
    words = t(
        "tokens.caption",
        p50=f"{found.percentiles['50']:,}",
        p95=f"{found.percentiles['95']:,}",
        p99=f"{found.percentiles['99']:,}",
        limit=f"{found.max_length:,}",
        cut=f"{found.cut_rows:,}",
    )
    if found.rows + found.refused < found.of:
        words += " " + t("tokens.sampled", rows=f"{found.rows:,}", all=f"{found.of:,}")
    return f"{words} {t('tokens.pairs')}" if found.pairs else words


def _histogram(found: LengthsView, t: Translator) -> str:
    end = max(found.edges[-1], round(1.04 * found.max_length) if found.max_length < 2 * found.edges[-1] else 0)
    x, y = Scale(0, end, 0, WIDTH), Scale(0, max(found.counts), HEIGHT, 12)
    # The last bin is open: it holds what is longer, too.
    lasts = [*(edge - 1 for edge in found.edges[1:-1]), max(found.edges[-1] - 1, found.percentiles["100"])]
    bars = "".join(
        f'<rect class="length-bar{" length-cut" if left > found.max_length else ""}" x="{x(left) + 1:.1f}" '
        f'y="{y(count):.1f}" width="{max(1.0, x(right) - x(left) - 2):.1f}" height="{HEIGHT - y(count):.1f}">'
        f"<title>{esc(t('tokens.bar', low=f'{left:,}', high=f'{last:,}', rows=f'{count:,}'))}</title></rect>"
        for left, right, last, count in zip(found.edges[:-1], found.edges[1:], lasts, found.counts, strict=True)
        if count
    )
    marks = {f"p{share}": found.percentiles[share] for share in _MARKED if found.percentiles[share] <= end}
    lines = "".join(f'<path class="length-mark" d="M{x(value):.1f} 0V{HEIGHT}" {_STROKE}/>' for value in marks.values())
    shown = found.max_length <= end
    limit = f'<path class="length-limit" d="M{x(found.max_length):.1f} 0V{HEIGHT}" {_STROKE}/>' if shown else ""
    y_ticks = [tick for tick in ticks(0, max(found.counts), 4) if tick == int(tick)]
    grid = "".join(f'<path class="plot-grid" d="M0 {y(tick):.1f}H{WIDTH}" {_STROKE}/>' for tick in y_ticks)
    labels = "".join(f'<span style="top:{100 * y(tick) / HEIGHT:.2f}%">{count_text(tick)}</span>' for tick in y_ticks)
    names = "".join(
        f'<span class="length-name" style="left:{100 * x(value) / WIDTH:.2f}%">{esc(name)}</span>'
        for name, value in _spread(marks, end).items()
    )
    if shown:
        left = min(94.0, 100 * x(found.max_length) / WIDTH)
        names += f'<span class="length-name length-name-limit" style="left:{left:.2f}%">{esc(t("tokens.limit"))}</span>'
    below = "".join(
        f'<span style="left:{100 * x(tick) / WIDTH:.2f}%">{count_text(tick)}</span>' for tick in ticks(0, end, 6)
    )
    caption = length_caption(found, t)
    return (
        f'<figure class="plot length-plot"><div class="length-names" aria-hidden="true">{names}</div>'
        f'<div class="plot-y" aria-hidden="true">{labels}</div>'
        f'<svg class="plot-area" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{esc(caption)}"><title>{esc(caption)}</title>{grid}{bars}{lines}{limit}</svg>'
        f'<div class="plot-x" aria-hidden="true">{below}<em>{esc(t("tokens.axis"))}</em></div>'
        f"<figcaption>{esc(caption)}</figcaption></figure>"
    )


def _spread(marks: dict[str, int], end: int) -> dict[str, int]:
    """The names of marks that stand apart far enough to be read; of two that do not, the later one."""
    kept: dict[str, int] = {}
    for name, value in marks.items():
        kept = {other: place for other, place in kept.items() if value - place > 0.05 * end}
        kept[name] = value
    return kept
