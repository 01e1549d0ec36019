"""Adapters as every loader reads them right: vLLM, llama.cpp, Ollama, transformers and peft. Torch-free.

Each of these reads another part of adapter_config.json. vLLM takes one alpha / r for all layers and no patterns;
llama.cpp takes alpha over the rank that it finds in B, and knows no rsLoRA; Ollama reads alpha as an unsigned integer.
So the true scale goes into B, every layer gets the same rank r, filled up with zeros, and lora_alpha is r.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core.config import AdapterConfig
from core.errors import AdapterError
from core.export.pairs import AdapterPairs, open_pairs, write_pairs
from core.low_rank import LowRank, tail
from core.models import OUTPUT_NAMES, inspect_model
from core.selection import selected_targets


@dataclass(frozen=True)
class PortableExport:
    """Where it is, its rank, and ||change - exported|| / ||change|| by layer: 0 but for what had to be approximated."""

    folder: Path
    rank: int
    losses: Mapping[str, float]


def export_portable(
    adapter_folder: Path | str, out_folder: Path | str, base: Path | str | None = None, r: int | None = None
) -> PortableExport:
    """Write an adapter as a plain LoRA of one rank and scale 1, in float32.

    `base`, the folder of the base model, is needed for methods whose change is no product of two factors, such as
    DoRA: these get the closest one of rank `r`, or else of their own rank, and the losses say how close. For the others
    `r` is the most that a layer keeps. Raises AdapterError for what other loaders would refuse or ignore.
    """
    pairs = open_pairs(adapter_folder, base, r)
    _refuse_unportable(pairs)
    losses = _losses(pairs, r)
    products = {path: one.truncated(r) if r and one.rank > r else one for path, one in pairs.products.items()}
    names = sorted({path.rpartition(".")[2] for path in products})
    rank = max(product.rank for product in products.values())
    if base is not None:
        products |= _unadapted(products, names, Path(base))
    even = {path: product.padded(rank) for path, product in sorted(products.items())}
    plain = {"bias": "none", "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    folder = write_pairs(out_folder, replace(pairs, products=even), **plain, target_modules=names, lora_dropout=0.0)
    return PortableExport(folder, rank, losses)


def _refuse_unportable(pairs: AdapterPairs) -> None:
    trained = [key for key in pairs.others if not key.endswith(".base_layer.weight")]
    ends = [path for path in pairs.products if path in pairs.embeddings or path.rpartition(".")[2] in OUTPUT_NAMES]
    if pairs.values.get("modules_to_save") or pairs.values.get("bias", "none") != "none" or trained:
        what = "trains weights or biases of the base whole (modules_to_save, bias)"
    elif ends:
        what = f"adapts {', '.join(ends)}, the input or output embedding"
    else:
        return
    raise AdapterError(f"This adapter {what}, which other loaders refuse or ignore.", "Merge it into its base instead.")


def _losses(pairs: AdapterPairs, r: int | None) -> dict[str, float]:
    found = {}
    for path, product in pairs.products.items():
        before = pairs.losses.get(path, 0.0)
        cut = tail(product.singular_values, r) if r and product.rank > r else 0.0
        whole = math.hypot(tail(product.singular_values, 0), before) if before or cut else 1.0
        found[path] = math.hypot(before, cut) / whole
    return found


def _unadapted(products: Mapping[str, LowRank], names: list[str], base: Path) -> dict[str, LowRank]:
    """Zero changes for the layers that a plain name means too, so that loaders find all that they look for."""
    info = inspect_model(base)
    known = {path: shape for target in info.targets for path, shape in zip(target.paths, target.shapes, strict=True)}
    first = next(iter(products))
    ends = [name for name in known if f".{first}".endswith(f".{name}")]
    prefix = first.removesuffix(max(ends, key=len)) if ends else ""  # some files leave out the name of the body
    found = {}
    for target in selected_targets(info, AdapterConfig(target_modules=tuple(names))):
        for path, (d_in, d_out) in zip(target.paths, target.shapes, strict=True):
            if f"{prefix}{path}" not in products:
                found[f"{prefix}{path}"] = LowRank(np.zeros((1, d_in)), np.zeros((d_out, 1)))
    return found
