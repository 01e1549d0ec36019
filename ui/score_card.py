"""What a run's held-out rows gave: figures before and after, their curves, the confusion matrix, and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from studio.views import MetricPoint, ScoreView
from ui.fragments import Cell, Row, esc, folded, heading, table
from ui.i18n import Translator
from ui.plots import HEIGHT, Scale, score_figure
from ui.quantities import NOTHING, share_text

# In the order of interest; shares are drawn, the others stand in the table alone.
SHARES = (
    "accuracy", "macro_f1", "micro_f1", "preference_accuracy", "exact_match", "token_f1", "valid_json",
)  # fmt: skip
HUNDREDS = ("bleu", "chrf")  # from 0 to 100, drawn on the same scale
DRAWN = (*SHARES, *HUNDREDS)  # the curves that the card needs
OTHERS = ("perplexity", "preference_margin", "reward_chosen", "reward_rejected")
LOWER_IS_BETTER = ("perplexity", "reward_rejected")
MOST_LABELS = 20  # that a confusion matrix is drawn for
SHOWN_ANSWERS = 8


def score_card(scores: Sequence[ScoreView], metrics: Mapping[str, Sequence[MetricPoint]], t: Translator) -> str:
    """The whole card; empty for a run that measured nothing but its loss."""
    if not scores or not any(view.values for view in scores):
        return ""
    parts = [heading(t("scores.title"), t("scores.text")), _table(scores, t), _curves(metrics, t)]
    matrix = next((view for view in reversed(scores) if view.confusion), None)
    if matrix is not None and len(matrix.labels) <= MOST_LABELS:
        parts.append(confusion_picture(matrix, t))
    answered = next((view for view in reversed(scores) if view.answers), None)
    if answered is not None:
        parts.append(folded(t("scores.answers", step=f"{answered.step:,}"), _answers(answered, t)))
    return "".join(parts)


def _table(scores: Sequence[ScoreView], t: Translator) -> str:
    """Each figure at the first and at the last measurement, and the best that training gave."""
    rows = []
    for name in (*SHARES, *HUNDREDS, *OTHERS):
        found = [(view.step, view.values[name]) for view in scores if name in view.values]
        if found:
            trained = [value for step, value in found if step]
            best = (min if name in LOWER_IS_BETTER else max)(trained) if trained else None
            values = (found[0][1], found[-1][1], best)
            cells = (Cell.number(NOTHING if value is None else _written(name, value)) for value in values)
            rows.append(Row((t.known(f"score.{name}", name), *cells)))
    columns = [t(f"scores.{name}") for name in ("figure", "first", "last", "best")]
    return table(columns, rows, t("scores.title"))


def _written(name: str, value: float) -> str:
    return share_text(value, 1) if name in SHARES else f"{value:.1f}" if name in HUNDREDS else f"{value:.3g}"


def _curves(metrics: Mapping[str, Sequence[MetricPoint]], t: Translator) -> str:
    curves = {name: metrics[name] for name in SHARES if len(metrics.get(name, ())) > 1}
    for name in HUNDREDS:
        if len(metrics.get(name, ())) > 1:
            curves[name] = [MetricPoint(point.step, point.value / 100) for point in metrics[name]]
    named = {t.known(f"score.{name}", name): points for name, points in curves.items()}
    return score_figure(named, t) if named else ""


def confusion_picture(view: ScoreView, t: Translator) -> str:
    """The confusion matrix as squares, the darker the larger their share of the row, with the counts in them."""
    count = len(view.labels)
    place = Scale(0, count, 0, HEIGHT)
    side = HEIGHT / count
    size = min(40.0, side / 2.5)
    cells = []
    for row, counts in enumerate(view.confusion):
        whole = sum(counts) or 1
        for column, number in enumerate(counts):
            words = t("scores.cell", true=view.labels[row], given=view.labels[column], count=number)
            box = f'x="{place(column):.1f}" y="{place(row):.1f}" width="{side:.1f}" height="{side:.1f}"'
            tone = "confusion-right" if row == column else "confusion-wrong"
            middle = f'x="{place(column + 0.5):.1f}" y="{place(row + 0.5):.1f}"'
            cells.append(
                f'<rect class="{tone}" {box} fill-opacity="{number / whole:.2f}"><title>{esc(words)}</title></rect>'
                f'<text class="confusion-count" {middle} style="font-size:{size:.0f}px">{number}</text>'
            )
    caption = t("scores.matrix", step=f"{view.step:,}", rows=sum(map(sum, view.confusion)))
    side_names = "".join(f"<span>{esc(label)}</span>" for label in view.labels)
    return (
        f'<figure class="confusion"><div class="confusion-true" aria-hidden="true">{side_names}</div>'
        f'<svg viewBox="0 0 {HEIGHT} {HEIGHT}" role="img" aria-label="{esc(caption)}">{"".join(cells)}</svg>'
        f'<div class="confusion-given" aria-hidden="true">{side_names}</div>'
        f"<figcaption>{esc(caption)}</figcaption></figure>"
    )


def _answers(view: ScoreView, t: Translator) -> str:
    rows = (Row(tuple(Cell.words(text) for text in answer)) for answer in view.answers[:SHOWN_ANSWERS])
    return table([t(f"scores.{name}") for name in ("prompt", "expected", "given")], rows, t("scores.title"))
