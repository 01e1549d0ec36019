"""Adapters whose files hold no plain pair of factors, as such pairs: put on the base's modules and asked there."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from core.adapters.base import Adapter, layer_kind
from core.adapters.change import dense_change, product_of
from core.adapters.host import AdaptedModule
from core.adapters.inject import adapters_of
from core.config import AdapterConfig
from core.errors import AdapterError
from core.export.method_file import read_quantization
from core.export.pairs import PREFIX, AdapterPairs
from core.export.peft_config import read_values
from core.low_rank import LowRank, closest, tail
from core.merge_plan import MergePlan, plan_merge
from core.model_config import read_config
from core.quantize.rounding import TRAINED, BaseRounding
from core.selection import pattern_value
from core.skeleton import make_skeleton

ADAPTER = "pairs"  # the adapter's name on the skeleton


def pairs_on_base(folder: Path, base: Path, config: AdapterConfig, r: int | None) -> AdapterPairs:
    """The change of every layer as a product: exact where the method has one, or else the closest of rank `r`.

    Without `r` it is the adapter's own rank. Only the weights of layers that need one are read. Raises AdapterError
    when the adapter does not fit the base.
    """
    skeleton = make_skeleton(read_config(base), base)
    plan = plan_merge(skeleton, base, folder, ADAPTER)
    quantization = read_quantization(folder)
    plan.round(skeleton, BaseRounding(quantization, TRAINED))
    products: dict[str, LowRank] = {}
    losses: dict[str, float] = {}
    hosts = adapters_of(skeleton).hosts
    for path, host in hosts.items():
        if (adapter := host.adapter(ADAPTER)) is not None:
            rank = r or pattern_value(config.rank_pattern, path, config.r)
            products[path], losses[path] = _product(host, adapter, plan, rank)
    if not products:
        raise AdapterError("This adapter trains weights of the base whole.", "Merge it into its base.")
    kinds = {path: layer_kind(hosts[path].base_layer) for path in products}
    return AdapterPairs(
        products,
        frozenset(path for path, kind in kinds.items() if kind == "embedding"),
        {key: value.float().numpy() for path, host in hosts.items() for key, value in _whole(path, host)},
        {**read_values(folder), "fan_in_fan_out": "conv1d" in kinds.values()},
        quantization,
        losses,
    )


def _product(host: AdaptedModule, adapter: Adapter, plan: MergePlan, r: int) -> tuple[LowRank, float]:
    exact = product_of(adapter)
    if exact is not None:
        return exact, 0.0
    needs_weight = type(adapter).merge_block is not Adapter.merge_block
    product, values = closest(dense_change(adapter, host.base_layer, _weight(plan, host) if needs_weight else None), r)
    return product, tail(values, r)


def _weight(plan: MergePlan, host: AdaptedModule) -> Tensor | None:
    """A layer's frozen weight from the base's files, as it was in training."""
    for job in (*plan.jobs, *plan.parameters.values()):
        if job.host is host and job.key == "weight":
            tensor = plan.read(job.source)
            return tensor if job.rounding is None else job.rounding(tensor, job.is_conv1d)
    return None


def _whole(path: str, host: AdaptedModule) -> list[tuple[str, torch.Tensor]]:
    """What the adapter trains whole on a module, by its stored names."""
    replacement = host.replacement(ADAPTER)
    if replacement is None:
        return []
    between = "base_layer." if host.adapter(ADAPTER) is not None else ""
    return [(f"{PREFIX}{path}.{between}{key}", value.detach()) for key, value in replacement.tensors().items()]
