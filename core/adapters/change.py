"""How an adapter changes the weight of one layer: as a product of two factors where it is one, or else dense."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from core.adapters.base import ALL_ROWS, Adapter, is_transposed, weight_value
from core.errors import AdapterError
from core.low_rank import Array, LowRank
from core.quantize.linear import QuantizedLinear


def product_of(adapter: Adapter) -> LowRank | None:
    """The change as a product of two factors, of rank 1 or more; None for a method without."""
    found = adapter.lora_factors()
    if found is None:
        return None
    product = LowRank(*(part.detach().double().cpu().numpy() for part in found))
    return product.padded(max(1, product.rank))  # every direction may have been dropped


@torch.no_grad()
def dense_change(adapter: Adapter, base: nn.Module, weight: Tensor | None = None) -> Array:
    """The change of a whole weight, (out, in), in float64.

    Where it depends on the frozen weight, that is `weight`, in its own layout, or else the weight of `base`. Raises
    AdapterError for an adapter on single parameters, and for weights that are not loaded.
    """
    if adapter.changes != ("weight",):
        raise AdapterError("This adapter changes single parameters, such as experts.", "Merge it into its base.")
    if type(adapter).merge_block is Adapter.merge_block:
        change = adapter.delta_weight()
    else:
        exact = (weight_value(base) if weight is None else weight).detach().double()
        change = adapter.merge_block(exact, ALL_ROWS) - exact
    if change.device.type == "meta":
        raise AdapterError("This adapter's change depends on the base's weights.", "Give the folder of its base model.")
    was_turned = is_transposed(base) and not isinstance(base, QuantizedLinear)
    return np.ascontiguousarray((change.T if was_turned else change).cpu().numpy())
