"""What a file holds and what is wrong with its rows, as HTML."""

from __future__ import annotations

from collections.abc import Mapping

from core.data.problems import FIX, KEEP, KINDS, SKIP, STOP
from core.data.scan import in_rows
from studio.views import DatasetView, ProblemView
from ui.fragments import Cell, Row, badge_level, callout, esc, folded, heading, table
from ui.i18n import Translator
from ui.quantities import share_text

SHOWN_PROBLEMS = 50


def format_name(format: str, t: Translator) -> str:
    """A format in words; of several files, all of theirs."""
    return " + ".join(t.known(f"format.{name}", name) for name in format.split(" + "))


def detect_card(found: DatasetView, t: Translator) -> str:
    """What the rows look like, by which rule, and how many of them follow it."""
    total = found.rows + found.bad_rows
    level = "ok" if found.share == 1 and found.bad_rows == 0 else "warning"
    kind = format_name(found.format, t)
    title = t("datasets.looks_like", kind=kind, share=share_text(found.share), rows=f"{total:,}")
    return callout(level, title, t("datasets.rule", rule=t.sentence(found.rule).rstrip(".。")), t)


def reading_card(rows: int, t: Translator) -> str:
    """How far the reading of a long file has come."""
    return callout("info", t("datasets.reading", rows=f"{rows:,}"), "", t)


def usual_actions() -> dict[str, str]:
    """What the page does with each kind of problem until the user says otherwise: it leaves out what is broken."""
    return {kind: SKIP if about.actions[0] == STOP else about.actions[0] for kind, about in KINDS.items()}


def problem_table(found: DatasetView, actions: Mapping[str, str], t: Translator) -> str:
    """Every kind of problem with its number of rows, an example, and what is done about it."""
    if not found.counts:
        return ""
    first: dict[str, ProblemView] = {}
    for problem in found.problems:
        first.setdefault(problem.kind, problem)
    ordered = sorted(found.counts, key=list(KINDS).index)
    rows = [
        Row(
            (
                _kind(kind, t),
                Cell.number(f"{found.counts[kind]:,}"),
                _example(first.get(kind), found, t),
                _choice(kind, actions, t),
            )
        )
        for kind in ordered
    ]
    headers = [t(f"problem.{name}") for name in ("kind", "rows", "detail", "action")]
    total = sum(found.counts.values())
    title = heading(t("datasets.problems", n=f"{total:,}"), t("datasets.problems_text"))
    return title + table(headers, rows, t("datasets.problems", n=f"{total:,}")) + _list(found, t)


def _kind(kind: str, t: Translator) -> Cell:
    return Cell(badge_level(KINDS[kind].level, t.known(f"problem.{kind}", kind), t))


def _example(problem: ProblemView | None, found: DatasetView, t: Translator) -> Cell:
    if problem is None:
        return Cell("")
    words = esc(t.sentence(problem.detail))
    return Cell(
        f'<b>{esc(_where(problem, found, t))}</b> {words}<code class="excerpt">{esc(problem.excerpt)}</code>', wide=True
    )


def _where(problem: ProblemView, found: DatasetView, t: Translator) -> str:
    """The line of the file, as an editor shows it; of a table the row."""
    unit = "row_number" if in_rows(problem.file or found.file_name) else "line_number"
    row = t(f"problem.{unit}", row=f"{problem.row:,}")
    return f"{problem.file}, {row}" if problem.file else row


def _choice(kind: str, actions: Mapping[str, str], t: Translator) -> Cell:
    """Buttons of which one is pressed; a click arrives through DELEGATE."""
    offered = [action for action in (SKIP, KEEP, FIX) if action in KINDS[kind].actions]
    buttons = "".join(
        f'<button type="button" data-id="{esc(kind)}" data-action="{action}" '
        f'title="{esc(_hint(kind, action, t))}" '
        f'aria-pressed="{"true" if actions.get(kind) == action else "false"}">{esc(t(f"action.{action}"))}</button>'
        for action in offered
    )
    label = f"{t('problem.action')}: {t.known(f'problem.{kind}', kind)}"
    return Cell(f'<div class="segments" role="group" aria-label="{esc(label)}">{buttons}</div>')


def _hint(kind: str, action: str, t: Translator) -> str:
    """What a button will do, in a sentence."""
    plain = t(f"action.{action}_hint")
    return t.known(f"fix.{kind}", plain) if action == FIX else plain


def _list(found: DatasetView, t: Translator) -> str:
    """The first problems one by one, folded away."""
    shown = found.problems[:SHOWN_PROBLEMS]
    rows = (Row((_kind(problem.kind, t), _example(problem, found, t))) for problem in shown)
    summary = t("datasets.problem_list", n=len(shown))
    return folded(summary, table([t("problem.kind"), t("problem.detail")], rows, summary))
