"""A new adapter from several others of the same model: the weighted sum of their changes.

`cat` puts the factors side by side, B = [w1 s1 B1, w2 s2 B2] and A = [A1; A2], which is the sum exactly, and the ranks
add up. `svd` is the closest adapter of rank r to that sum. Averaging A and B each by itself ("linear" in PEFT) is not
offered: it has cross terms B1 A2 that neither adapter learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from core.adapters.base import Adapter
from core.adapters.change import product_of
from core.adapters.inject import ModelAdapters, attach, known, plan_adapter, unmerged
from core.adapters.lora import LoRA
from core.combine import check_combination
from core.config import AdapterConfig
from core.errors import AdapterError
from core.low_rank import LowRank, relative_tail, weighted_sum
from core.methods import methods
from core.selection import shortest_pattern


def combine_adapters(
    model: nn.Module,
    names: Sequence[str],
    weights: Sequence[float],
    into: str,
    method: str = "cat",
    r: int | None = None,
) -> dict[str, float]:
    """Add the adapter `into`, the weighted sum of others, and make it the only active one.

    Weights may be negative (task arithmetic, Ilharco et al. 2023). An adapter that is not on a layer adds nothing to
    it. With "svd" a layer gets at most rank `r`, or else the highest rank it has in any of the adapters. Returns by
    layer what was lost, ||sum - result|| / ||sum|| in the Frobenius norm: 0 with "cat". Raises AdapterError for
    adapters that have no two factors to a layer, or that train weights of the base.
    """
    check_combination(len(names), weights, method, r)
    record = known(model, names)
    unmerged(record, "combine adapters")
    sums = {path: weighted_sum(*terms) for path, terms in _terms(record, names, weights).items()}
    losses = dict.fromkeys(sums, 0.0)
    if method == "svd":
        ranks = {path: r or _highest(record, path, names) for path in sums}
        losses = {path: relative_tail(sums[path].singular_values, ranks[path]) for path in sums}
        sums = {path: product.truncated(ranks[path]) for path, product in sums.items()}
    _add(model, sums, into)
    return losses


def _terms(
    record: ModelAdapters, names: Sequence[str], weights: Sequence[float]
) -> dict[str, tuple[list[LowRank], list[float]]]:
    """The products that add up on every layer, with their weights, in the order of the model."""
    terms: dict[str, tuple[list[LowRank], list[float]]] = {}
    for path, host in record.hosts.items():
        for name, weight in zip(names, weights, strict=True):
            if name in host.replacements:
                raise AdapterError(
                    f"Adapter {name!r} trains parameters of {path!r} itself; these do not add up.",
                    "Combine adapters without modules_to_save and trained biases.",
                )
            if (adapter := host.adapter(name)) is not None:
                products, shares = terms.setdefault(path, ([], []))
                products.append(_product(record.configs[name], name, path, adapter))
                shares.append(weight)
    return terms


def _product(config: AdapterConfig, name: str, path: str, adapter: Adapter) -> LowRank:
    found = product_of(adapter)
    if found is None:
        raise AdapterError(
            f"Adapter {name!r} ({methods.get(config.method).title}) has no two factors for {path!r} that could be "
            "added to others.",
            "Combine LoRA-type adapters, or merge this one into the weights.",
        )
    return found


def _highest(record: ModelAdapters, path: str, names: Sequence[str]) -> int:
    found = [product_of(part) for name in names if (part := record.hosts[path].adapter(name)) is not None]
    return max(product.rank for product in found if product is not None)


def _add(model: nn.Module, products: dict[str, LowRank], name: str) -> None:
    """Put the products on the model as a LoRA adapter of scale 1."""
    r, pattern = shortest_pattern({path: product.rank for path, product in products.items()})
    config = AdapterConfig(
        r=r,
        lora_alpha=float(r),
        target_modules=tuple(products),
        rank_pattern=pattern,
        alpha_pattern={path: float(rank) for path, rank in pattern.items()},
    )
    attach(model, plan_adapter(model, config, name, is_strict=False), name, loads=True)
    for path, product in products.items():
        adapter = known(model, (name,)).hosts[path].adapter(name)
        if isinstance(adapter, LoRA):
            _fill(adapter, product)


@torch.no_grad()
def _fill(adapter: LoRA, product: LowRank) -> None:
    adapter.lora_A.copy_(torch.from_numpy(np.ascontiguousarray(product.a)))
    adapter.lora_B.copy_(torch.from_numpy(np.ascontiguousarray(product.b)))
