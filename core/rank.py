"""How much of its rank a trained adapter uses: the singular values of every layer's change. Torch-free.

report = rank_report("adapter")               # a PEFT folder; no base model for LoRA-type adapters
rank_for_energy(report, 0.95)                 # the rank that would have held 95 % of the change
suggest_rank(4096), recommend(7_000_000_000)  # rules of thumb, for before there is anything to measure
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import ConfigError
from core.export.pairs import open_pairs
from core.low_rank import Array

if TYPE_CHECKING:
    from torch import nn

SHARES = (0.90, 0.95, 0.99)  # of the energy, as reports show them


@dataclass(frozen=True, eq=False)
class LayerRank:
    """The singular values of one layer's change."""

    path: str
    rank: int  # of the stored factors
    values: Array  # the largest first

    @cached_property
    def squares(self) -> Array:
        """s_i^2; their sum is the squared Frobenius norm of the change."""
        return np.square(self.values)

    @property
    def norm(self) -> float:
        """The Frobenius norm of the change."""
        return float(np.sqrt(self.squares.sum()))

    def energy(self, r: int) -> float:
        """The share of sum s_i^2 that the first r singular values hold; 1 for a layer without change."""
        whole = float(self.squares.sum())
        return float(self.squares[:r].sum()) / whole if whole else 1.0

    def rank_for(self, share: float) -> int:
        """The lowest rank, at least 1, that holds a share of the energy."""
        return _lowest(self.squares, share)

    @property
    def effective_rank(self) -> float:
        """exp(-sum p_i ln p_i) with p_i = s_i / sum s (Roy and Vetterli 2007); 0 for a layer without change."""
        whole = float(self.values.sum())
        shares = self.values[self.values > 0] / whole if whole else np.empty(0)
        return float(np.exp(-(shares * np.log(shares)).sum())) if shares.size else 0.0


@dataclass(frozen=True)
class RankReport:
    """All layers of an adapter."""

    layers: tuple[LayerRank, ...]

    @property
    def rank(self) -> int:
        """The highest rank of a layer."""
        return max(layer.rank for layer in self.layers)

    @cached_property
    def squares(self) -> Array:
        """s_i^2 by place i, added up over the layers."""
        total = np.zeros(max(len(layer.values) for layer in self.layers))
        for layer in self.layers:
            total[: len(layer.squares)] += layer.squares
        return total

    def energy(self, r: int) -> float:
        """The share of the whole change that is left when every layer keeps rank r."""
        whole = float(self.squares.sum())
        return float(self.squares[:r].sum()) / whole if whole else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for JSON."""
        shares = {f"{share:.2f}": rank_for_energy(self, share) for share in SHARES}
        return {"rank": self.rank, "rank_for_energy": shares, "layers": [_plain(layer) for layer in self.layers]}


def _plain(layer: LayerRank) -> dict[str, Any]:
    return {
        "path": layer.path,
        "rank": layer.rank,
        "norm": layer.norm,
        "effective_rank": layer.effective_rank,
        "rank_for_energy": {f"{share:.2f}": layer.rank_for(share) for share in SHARES},
        "singular_values": layer.values.tolist(),
    }


def rank_report(folder: Path | str, base: Path | str | None = None) -> RankReport:
    """The report of an adapter's folder.

    `base`, the folder of its base model, is needed for methods that do not store two factors per layer; of those whose
    change is no product at all the values are those of the dense change, cut at the adapter's own rank. Raises
    AdapterError for an adapter that changes no layers' weights.
    """
    products = open_pairs(folder, base).products
    return RankReport(tuple(LayerRank(path, one.rank, one.singular_values) for path, one in products.items()))


def rank_report_of(model: nn.Module, name: str = "default") -> RankReport:
    """The report of an adapter on a model; all singular values, also where its change is no product of two factors."""
    from core.adapters.change import dense_change, product_of
    from core.adapters.inject import known
    from core.adapters.merging import check_mergeable

    record = known(model, (name,))
    check_mergeable(record.configs[name])
    layers: list[LayerRank] = []
    for path, host in record.hosts.items():
        if (adapter := host.adapter(name)) is not None:
            product = product_of(adapter)
            if product is not None:
                layers.append(LayerRank(path, product.rank, product.singular_values))
            else:
                values: Array = np.linalg.svd(dense_change(adapter, host.base_layer), full_matrices=False)[1]
                layers.append(LayerRank(path, len(values), values))
    if not layers:
        raise ConfigError(f"Adapter {name!r} has no layer with an update of its own.", "Pick another adapter.")
    return RankReport(tuple(layers))


def rank_for_energy(report: RankReport, share: float = 0.95) -> int:
    """The lowest rank for all layers alike that holds a share of the adapter's whole change: what was measured."""
    return _lowest(report.squares, share)


def _lowest(squares: Array, share: float) -> int:
    if not 0 < share <= 1:
        raise ConfigError(f"The share of energy is {share}.", "Give a number above 0 and up to 1.")
    sums = np.cumsum(squares)
    if not sums.size or not sums[-1]:
        return 1
    return 1 + int(np.searchsorted(sums, share * sums[-1] * (1 - 1e-12)))  # rounding must not cost a rank


def suggest_rank(d: int, c: float = 0.25) -> int:
    """c sqrt(d) for a layer of width d: a heuristic of the articles (there with c from 0.1 to 0.5) without a source.

    `rank_for_energy` is the measured alternative, once there is an adapter to measure.
    """
    if d < 1 or c <= 0:
        raise ConfigError(f"The width is {d} and c is {c}.", "Give a width of 1 or more and a c above 0.")
    return max(1, round(c * math.sqrt(d)))


def recommend(parameters: int) -> tuple[int, int]:
    """(r, alpha) to start with, by the size of the base: the articles' small, medium and large, with limits of ours."""
    if parameters < 300_000_000:
        return 4, 8
    return (8, 16) if parameters <= 3_000_000_000 else (16, 32)


def by_kind(report: RankReport, share: float = 0.95) -> Mapping[str, list[int]]:
    """The rank that holds a share of the energy, for the layers of every name such as `q_proj`, in their order."""
    found: dict[str, list[int]] = {}
    for layer in report.layers:
        found.setdefault(layer.path.rpartition(".")[2], []).append(layer.rank_for(share))
    return found
