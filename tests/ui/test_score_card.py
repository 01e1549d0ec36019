"""The figures of held-out rows on the job page."""

from __future__ import annotations

import re

from studio.views import MetricPoint, ScoreView
from ui.i18n import Translator
from ui.quantities import NOTHING
from ui.score_card import confusion_picture, score_card

FIRST = ScoreView(0, {"accuracy": 0.5, "perplexity": 9.0}, ("bad", "good <b>"), ((3, 1), (3, 1)))
LAST = ScoreView(20, {"accuracy": 0.875, "perplexity": 4.0}, ("bad", "good <b>"), ((4, 0), (1, 3)))


def test_figures_curves_matrix_and_answers_are_shown() -> None:
    t = Translator("en")
    answered = ScoreView(20, LAST.values, LAST.labels, LAST.confusion, (("How?", "So.", "<i>So</i>"),))
    html = score_card([FIRST, answered], {"accuracy": [MetricPoint(0, 0.5), MetricPoint(20, 0.875)]}, t)
    assert "Accuracy" in html and "87.5 %" in html and "score-0" in html
    assert html.index("Accuracy") < html.index("Perplexity")
    assert "&lt;i&gt;So&lt;/i&gt;" in html and "<i>So</i>" not in html


def test_the_best_figure_is_one_of_training_and_of_costs_the_lowest() -> None:
    steps = [(0, 0.9, 2.0, 1.0), (10, 0.6, 5.0, -1.5), (20, 0.7, 4.0, -0.5)]
    views = [
        ScoreView(step, {"accuracy": right, "perplexity": cost, "reward_rejected": worse})
        for step, right, cost, worse in steps
    ]
    t = Translator("en")
    assert [cells[1:] for cells in _cells(score_card(views, {}, t))] == [
        ["90.0 %", "70.0 %", "70.0 %"], ["2", "4", "4"], ["1", "-0.5", "-1.5"],
    ]  # fmt: skip
    untrained = _cells(score_card(views[:1], {}, t))
    assert [cells[3] for cells in untrained] == [NOTHING] * 3


def _cells(html: str) -> list[list[str]]:
    """The text of a table's cells, row by row."""
    rows = re.findall(r"<tr>(.*?)</tr>", html.partition("<tbody>")[2], re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]


def test_the_matrix_has_every_count_in_its_place() -> None:
    picture = confusion_picture(LAST, Translator("en"))
    assert picture.count("<rect") == 4
    assert "bad taken for bad: 4" in picture and "good &lt;b&gt; taken for bad: 1" in picture
    assert 'fill-opacity="0.75"' in picture and "<b>" not in picture


def test_a_run_without_figures_has_no_card() -> None:
    assert score_card([], {}, Translator("en")) == ""
    assert score_card([ScoreView(0, {})], {}, Translator("zh")) == ""
