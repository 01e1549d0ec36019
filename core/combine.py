"""A new adapter folder from several others of the same base: the weighted sum of their changes. Torch-free.

`core/adapters/combine.py` does the same to adapters on a model, and says why "linear" is not offered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import AdapterError
from core.export.pairs import AdapterPairs, open_pairs, write_pairs
from core.low_rank import LowRank, tail, weighted_sum

METHODS = ("cat", "svd")


@dataclass(frozen=True)
class Combination:
    """What came of it: the ranks by layer, and ||sum - result|| / ||sum|| over all layers, 0 with "cat"."""

    ranks: Mapping[str, int]
    relative_error: float


def combine_folders(
    folders: Sequence[Path | str],
    weights: Sequence[float],
    out_folder: Path | str,
    method: str = "cat",
    r: int | None = None,
    base: Path | str | None = None,
) -> Combination:
    """Write the weighted sum of adapters as a PEFT LoRA folder of scale 1.

    "cat" is the sum exactly, and ranks add up; "svd" is the closest of rank `r`, or else of the highest rank that a
    layer has in any of them. Weights may be negative. Raises AdapterError for adapters that train weights of the base
    whole, and for those whose change is no product of two factors.
    """
    check_combination(len(folders), weights, method, r)
    found = [open_pairs(folder, base) for folder in folders]
    _refuse_others(found)
    terms: dict[str, list[tuple[LowRank, float]]] = {}
    for pairs, weight in zip(found, weights, strict=True):
        for path, product in pairs.products.items():
            terms.setdefault(path, []).append((product, weight))
    sums = {path: weighted_sum(*zip(*parts, strict=True)) for path, parts in terms.items()}
    kept = sums
    if method == "svd":
        ranks = {path: r or max(product.rank for product, _ in parts) for path, parts in terms.items()}
        kept = {path: product.truncated(ranks[path]) for path, product in sums.items()}
    whole = math.hypot(*(tail(product.singular_values, 0) for product in sums.values()))
    lost = math.hypot(*(tail(product.singular_values, kept[path].rank) for path, product in sums.items()))
    _write(out_folder, found, kept)
    return Combination({path: product.rank for path, product in kept.items()}, lost / whole if whole else 0.0)


def check_combination(count: int, weights: Sequence[float], method: str, r: int | None) -> None:
    """Raise AdapterError for a request that makes no sense."""
    if count < 1 or count != len(weights):
        raise AdapterError(f"{count} adapters and {len(weights)} weights are given.", "Give one weight to each.")
    if not all(math.isfinite(weight) for weight in weights):
        raise AdapterError(f"The weights are {list(weights)}.", "Give finite numbers.")
    if not any(weights):
        raise AdapterError("All weights are 0, so nothing would be left.", "Give at least one adapter another weight.")
    if method not in METHODS:
        raise AdapterError(f"There is no way {method!r} to combine.", f"Pick one of: {', '.join(METHODS)}.")
    if r is not None and (method == "cat" or r < 1):
        raise AdapterError(f"r is {r} with {method!r}.", "Give a rank of 1 or more, and only with 'svd'.")


def _refuse_others(found: Sequence[AdapterPairs]) -> None:
    for pairs in found:
        if pairs.others or pairs.losses:
            raise AdapterError(
                "One of the adapters trains weights of the base whole, or is no product of two factors.",
                "Combine LoRA-type adapters without modules_to_save and trained biases.",
            )
        if pairs.quantization != found[0].quantization:
            raise AdapterError("The adapters were trained on bases of different quantisation.", "Pick others.")


def _write(out_folder: Path | str, found: Sequence[AdapterPairs], products: Mapping[str, LowRank]) -> None:
    embeddings = frozenset[str]().union(*(pairs.embeddings for pairs in found))
    plain = {"exclude_modules": None, "layers_to_transform": None, "layers_pattern": None, "lora_dropout": 0.0}
    combined = replace(found[0], products=products, embeddings=embeddings)
    write_pairs(out_folder, combined, **plain, target_modules=sorted(products))
