"""How much of its rank an adapter uses, as a picture: one column a layer, in rows of layers of one name."""

from __future__ import annotations

import re

from studio.views import LayerRankView, RankView
from ui.fragments import callout, esc
from ui.i18n import Translator

COLUMN, HEIGHT, GAP = 18, 56, 3  # units of the drawing
_NUMBER = re.compile(r"\.(\d+)\.")


def rank_card(view: RankView, t: Translator) -> str:
    """The sentence that counts, the picture, and what its shades mean."""
    if view.changes_nothing:
        return callout("info", t("rank.nothing"), "", t)
    rows = "".join(_row(name, layers, view.rank, t) for name, layers in _by_name(view).items())
    shades = "".join(f'<li><i class="rank-{share}"></i>{share} %</li>' for share in (90, 95, 99))
    thumb = f" {t('rank.thumb', r=view.rule_of_thumb)}" if view.rule_of_thumb else ""
    return (
        f'<p id="rank-sentence"><b>{esc(t("rank.fits", r=view.rank_95, rank=view.rank))}</b>{esc(thumb)}</p>'
        f'<ul class="rank-rows">{rows}</ul>'
        f'<ul class="rank-shades"><li>{esc(t("rank.shades"))}</li>{shades}</ul>'
    )


def _by_name(view: RankView) -> dict[str, list[LayerRankView]]:
    found: dict[str, list[LayerRankView]] = {}
    for layer in sorted(view.layers, key=lambda layer: [int(number) for number in _NUMBER.findall(layer.path)]):
        found.setdefault(layer.path.rpartition(".")[2], []).append(layer)
    return found


def _row(name: str, layers: list[LayerRankView], most: int, t: Translator) -> str:
    columns = "".join(_column(place, layer, most, t) for place, layer in enumerate(layers))
    width = COLUMN * len(layers)
    return (
        f'<li><span>{esc(name)}</span><svg viewBox="0 0 {width} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{esc(t("rank.row", name=name))}">{columns}</svg></li>'
    )


def _column(place: int, layer: LayerRankView, most: int, t: Translator) -> str:
    """The ranks that hold 99, 95 and 90 % of one layer's change, over each other, on the whole rank's height."""
    words = t("rank.layer", path=layer.path, r90=layer.rank_90, r95=layer.rank_95, r99=layer.rank_99, rank=layer.rank)
    shapes = [("whole", layer.rank), ("99", layer.rank_99), ("95", layer.rank_95), ("90", layer.rank_90)]
    bars = "".join(
        f'<rect class="rank-{share}" x="{place * COLUMN}" y="{HEIGHT * (1 - rank / most):.1f}" '
        f'width="{COLUMN - GAP}" height="{HEIGHT * rank / most:.1f}"/>'
        for share, rank in shapes
    )
    return f"<g><title>{esc(words)}</title>{bars}</g>"
