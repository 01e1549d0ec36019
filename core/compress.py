"""Rank pruning: an adapter with fewer directions per layer, and exactly what that loses. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import ConfigError
from core.export.pairs import AdapterPairs, open_pairs, write_pairs
from core.low_rank import LowRank, tail
from core.rank import LayerRank


@dataclass(frozen=True)
class Compression:
    """What was kept of an adapter and what was lost, in the Frobenius norm of the change of the weights."""

    ranks: Mapping[str, int]  # by the layer's path
    errors: Mapping[str, float]  # ||change - kept|| by layer
    norms: Mapping[str, float]  # ||change|| by layer

    @property
    def error(self) -> float:
        """||change - kept|| over all layers."""
        return math.hypot(*self.errors.values())

    @property
    def relative_error(self) -> float:
        """||change - kept|| / ||change|| over all layers."""
        whole = math.hypot(*self.norms.values())
        return self.error / whole if whole else 0.0


def compress_adapter(
    folder: Path | str,
    out_folder: Path | str,
    r: int | None = None,
    energy: float | None = None,
    base: Path | str | None = None,
) -> Compression:
    """Write an adapter with every layer cut to rank `r`, or to the lowest that holds a share `energy` of its change.

    The change that is left is the closest of its rank (Eckart and Young 1936). A layer that has no higher rank stays as
    it is. The result is a PEFT LoRA folder of scale 1; `base`, the folder of the base model, is needed for methods
    that do not store two factors per layer. Raises ConfigError unless one of `r` and `energy` is given.
    """
    _check_request(r, energy)
    pairs = open_pairs(folder, base, r)
    kept: dict[str, LowRank] = {}
    errors: dict[str, float] = {}
    for path, product in pairs.products.items():
        rank = r or LayerRank(path, product.rank, product.singular_values).rank_for(energy or 1.0)
        is_cut = rank < product.rank
        kept[path] = product.truncated(rank) if is_cut else product
        errors[path] = math.hypot(tail(product.singular_values, rank) if is_cut else 0.0, pairs.losses.get(path, 0.0))
    write_pairs(out_folder, replace(pairs, products=kept))
    return Compression({path: product.rank for path, product in kept.items()}, errors, _norms(pairs))


def _check_request(r: int | None, energy: float | None) -> None:
    if (r is None) == (energy is None):
        raise ConfigError("Either a rank or a share of the energy decides.", "Give one of the two.")
    if r is not None and r < 1:
        raise ConfigError(f"The rank is {r}.", "Give a rank of 1 or more.")
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError(f"The share of energy is {energy}.", "Give a number above 0 and up to 1.")


def _norms(pairs: AdapterPairs) -> dict[str, float]:
    """||change||: what a layer was approximated by is orthogonal to what that lost."""
    return {
        path: math.hypot(tail(product.singular_values, 0), pairs.losses.get(path, 0.0))
        for path, product in pairs.products.items()
    }
