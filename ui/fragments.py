"""Small pieces of HTML. Whatever comes from a file, a user or a model passes through `esc` here: it is hostile."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ui.i18n import Translator
from ui.quantities import share_text

SYMBOLS = {"ok": "✓", "warning": "!", "error": "✕", "info": "i"}
LONGEST_TURN = 20_000  # characters: a browser is slow with millions
STATE_SYMBOLS = {"queued": "◷", "running": "▶", "paused": "❚❚", "succeeded": "✓", "failed": "✕", "cancelled": "⊘"}

# A click on anything marked data-id inside a gr.HTML reaches Python as evt.id and evt.action; one listener on the
# root survives every re-rendering of the rows.
DELEGATE = """
element.addEventListener('click', (event) => {
  const link = event.target.closest('a[href]');
  const hit = event.target.closest('[data-id]');
  if (!hit || link || !element.contains(hit)) return;
  trigger('click', {id: hit.dataset.id, action: hit.dataset.action || ''});
});
"""


def esc(value: object) -> str:
    """Text made safe inside elements and attributes."""
    return html.escape(str(value), quote=True)


def badge(state: str, t: Translator) -> str:
    """A job's state as symbol and word, so that colour is only a help."""
    symbol = STATE_SYMBOLS.get(state, "·")
    return f'<span class="badge badge-{esc(state)}"><i aria-hidden="true">{symbol}</i>{esc(t(f"state.{state}"))}</span>'


def badge_level(level: str, words: str, t: Translator) -> str:
    """A finding's kind with the symbol of its level; level is ok, warning or error."""
    return (
        f'<span class="badge badge-{esc(level)}"><i aria-hidden="true">{SYMBOLS.get(level, "i")}</i>'
        f'<span class="sr">{esc(t(f"level.{level}"))}: </span>{esc(words)}</span>'
    )


def callout(level: str, title: str, text: str = "", t: Translator | None = None) -> str:
    """A box with a symbol, one sentence in bold and what to do; level is ok, info, warning or error."""
    word = f'<span class="sr">{esc(t(f"level.{level}"))}: </span>' if t else ""
    rest = f"<span>{esc(text)}</span>" if text else ""
    role = "alert" if level == "error" else "status"
    return (
        f'<div class="callout callout-{level}" role="{role}"><i aria-hidden="true">{SYMBOLS[level]}</i>'
        f"<p>{word}<b>{esc(title)}</b> {rest}</p></div>"
    )


def progress(share: float, label: str, elem_id: str = "") -> str:
    """A progress bar with its figure beside it."""
    share = min(1.0, max(0.0, share))
    mark = f' id="{esc(elem_id)}"' if elem_id else ""
    return (
        f'<div class="progress"{mark}><div class="progress-track" role="progressbar" aria-label="{esc(label)}" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{100 * share:.0f}">'
        f'<div class="progress-fill" style="width:{100 * share:.1f}%"></div></div><b>{share_text(share)}</b></div>'
    )


def readings(values: Mapping[str, str]) -> str:
    """Labelled figures in a row, as on an instrument."""
    cells = "".join(f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>" for name, value in values.items())
    return f'<dl class="readings">{cells}</dl>'


def heading(title: str, text: str = "") -> str:
    """A section's title and, under it, one sentence on what it is for."""
    under = f"<p>{esc(text)}</p>" if text else ""
    return f'<div class="heading"><h2>{esc(title)}</h2>{under}</div>'


def empty(title: str, text: str = "") -> str:
    """What stands where there is nothing yet."""
    return f'<div class="empty"><b>{esc(title)}</b><p>{esc(text)}</p></div>'


def button(text: str, item_id: str, action: str = "", kind: str = "", *, label: str = "") -> str:
    """A button whose click arrives in Python through DELEGATE; `label` says what a mere symbol means."""
    said = f' aria-label="{esc(label)}" title="{esc(label)}"' if label else ""
    return (
        f'<button type="button" class="mini {kind}" data-id="{esc(item_id)}" data-action="{esc(action)}"{said}>'
        f"{esc(text)}</button>"
    )


def download(label: str, kind: str, item_id: str) -> str:
    """A link that streams a model or an adapter as one zip file."""
    return f'<a class="mini mini-accent" href="/files/{esc(kind)}/{esc(item_id)}.zip" download>⤓ {esc(label)}</a>'


@dataclass(frozen=True)
class Cell:
    """A table cell; `html` is trusted markup from this module, anything else goes in as escaped text."""

    html: str
    numeric: bool = False
    wide: bool = False  # long text that may wrap

    @classmethod
    def number(cls, text: object) -> Cell:
        """A figure."""
        return cls(esc(text), numeric=True)

    @classmethod
    def words(cls, text: object) -> Cell:
        """A sentence, which may take several lines."""
        return cls(esc(text), wide=True)


@dataclass(frozen=True)
class Row:
    """A table row; with an `item_id` a click on it selects it, and its first cell becomes the button to do so."""

    cells: Sequence[Cell | str]
    item_id: str = ""
    selected: bool = False


def table(headers: Sequence[str], rows: Iterable[Row], caption: str) -> str:
    """A table that scrolls sideways in itself on a narrow screen; the caption is for screen readers."""
    head = "".join(f'<th scope="col">{esc(header)}</th>' for header in headers)
    body = "".join(_row(row, headers) for row in rows)
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{esc(caption)}"><table><caption class="sr">'
        f"{esc(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(row: Row, headers: Sequence[str]) -> str:
    cells = [cell if isinstance(cell, Cell) else Cell(esc(cell)) for cell in row.cells]
    parts = []
    for place, (cell, header) in enumerate(zip(cells, headers, strict=True)):
        content = cell.html
        if place == 0 and row.item_id:
            pressed = "true" if row.selected else "false"
            content = content.replace("_", "_<wbr>")  # file names break there, not within words
            content = (
                f'<button type="button" class="row-name" data-id="{esc(row.item_id)}" aria-pressed="{pressed}">'
                f"{content}</button>"
            )
        kind = ' class="num"' if cell.numeric else ' class="wide"' if cell.wide else ""
        parts.append(f'<td{kind} data-label="{esc(header)}">{content}</td>')
    mark = f' data-id="{esc(row.item_id)}"' if row.item_id else ""
    return f"<tr{mark}{' class=chosen' if row.selected else ''}>{''.join(parts)}</tr>"


def bubbles(turns: Iterable[tuple[str, str]], t: Translator) -> str:
    """A conversation as chat bubbles, none of it interpreted; of a very long turn the beginning."""
    parts = [
        f'<div class="bubble bubble-{esc(role)}"><span class="role">{esc(t.known(f"role.{role}", role))}</span>'
        f'<div class="words" dir="auto">{esc(text[:LONGEST_TURN])}</div>{_rest(text, t)}</div>'
        for role, text in turns
    ]
    return f'<div class="bubbles">{"".join(parts)}</div>'


def _rest(text: str, t: Translator) -> str:
    more = len(text) - LONGEST_TURN
    return f"<small>{esc(t('turn.more', n=f'{more:,}'))}</small>" if more > 0 else ""


def folded(summary: str, content: str) -> str:
    """Trusted markup behind a line that opens it."""
    return f'<details class="folded"><summary>{esc(summary)}</summary>{content}</details>'
