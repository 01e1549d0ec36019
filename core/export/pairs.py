"""Adapter folders as products of two factors per layer, in numpy: read, change, write. Torch-free.

Every method whose update is s B A for each layer is read straight from its file. Another one is put on its base's
modules (`core/export/pairs_on_base.py`, which needs torch), and comes back as the same, exact or approximated.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.config import AdapterConfig
from core.errors import AdapterError
from core.export.method_file import read_quantization, write_method
from core.export.peft_config import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    read_adapter_config,
    read_shapes,
    read_values,
    weights_file,
)
from core.export.peft_fields import LORA_FIELDS
from core.low_rank import LowRank
from core.methods import methods
from core.selection import pattern_value, shortest_pattern

PREFIX = "base_model.model."
_FIRST = re.compile(r"base_model\.model\.(.+)\.lora_(A\.weight|embedding_A)")
_KEPT = (  # fields of adapter_config.json that have nothing to do with the factors
    *("base_model_name_or_path", "bias", "exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform"),
    *("lora_dropout", "modules_to_save", "revision", "target_modules", "task_type"),
)


@dataclass(frozen=True)
class AdapterPairs:
    """The change of every layer as one product, scale included, and what else an adapter's folder holds."""

    products: Mapping[str, LowRank]  # by the layer's path, in the order of the file
    embeddings: frozenset[str] = frozenset()  # paths of the layers that are embeddings
    others: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # trained whole, by their stored names
    values: Mapping[str, Any] = field(default_factory=dict)  # of adapter_config.json
    quantization: str = "none"  # of the base it was trained on
    losses: Mapping[str, float] = field(default_factory=dict)  # ||change - product||_F of layers that are approximated

    @property
    def name(self) -> str:
        """The base model it says it belongs to."""
        return str(self.values.get("base_model_name_or_path") or "")


def open_pairs(folder: Path | str, base: Path | str | None = None, r: int | None = None) -> AdapterPairs:
    """Read an adapter's products; a method that has none gets the closest ones of rank `r`, or else its own rank.

    `base` is the folder of the base model, without which only methods that store pairs can be read. Raises
    AdapterError for an adapter that is no change of layers' weights.
    """
    folder = Path(folder)
    config = read_adapter_config(folder)
    about = methods.get(config.method)
    if not about.merges:
        raise AdapterError(f"{about.title} does not change the weights, so it has no rank.", "Use it as it is.")
    if config.target_parameters:
        raise AdapterError("This adapter changes single parameters, such as experts.", "Merge it into its base.")
    if about.stores_pairs:
        return _read(folder, config)
    if base is None:
        raise AdapterError(
            f"{about.title} does not store its change as two factors per layer.", "Give the folder of its base model."
        )
    from core.export.pairs_on_base import pairs_on_base

    return pairs_on_base(folder, Path(base), config, r)


def _read(folder: Path, config: AdapterConfig) -> AdapterPairs:
    tensors = read_tensors(folder)
    products: dict[str, LowRank] = {}
    embeddings: set[str] = set()
    for key in list(tensors):
        if (match := _FIRST.fullmatch(key)) is not None:
            path = match[1]
            a, b = tensors.pop(key), tensors.pop(key.replace("lora_A", "lora_B").replace("g_A", "g_B"), None)
            r = pattern_value(config.rank_pattern, path, config.r)
            if b is None or a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == r:
                raise AdapterError(f"The two tensors of {path!r} are no pair of rank {r}.", "Save the adapter again.")
            products[path] = LowRank(a.astype(np.float64), _scale(config, path, r) * b.astype(np.float64))
            if key.endswith("embedding_A"):
                embeddings.add(path)
    if not products:
        raise AdapterError(f"{folder.name!r} has no pair of tensors.", "Save the adapter again.")
    return AdapterPairs(products, frozenset(embeddings), tensors, read_values(folder), read_quantization(folder))


def _scale(config: AdapterConfig, path: str, r: int) -> float:
    alpha = pattern_value(config.alpha_pattern, path, config.lora_alpha)
    is_root = config.use_rslora or config.method == "rslora"
    return alpha / (math.sqrt(r) if is_root else r)


def read_tensors(folder: Path) -> dict[str, NDArray[Any]]:
    """Every tensor of an adapter, 16-bit ones as float32, by name; AdapterError for values that are not finite."""
    read_shapes(folder)  # refuses what is no whole file of floating-point tensors
    path = weights_file(folder)
    tensors: dict[str, NDArray[Any]] = {}
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    values = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length) if len(header) > 0 else np.empty(0, np.uint8)
    for key in sorted(header.keys() - {"__metadata__"}):
        entry = header[key]
        start, end = entry["data_offsets"]
        tensors[key] = _decoded(values[start:end], entry["dtype"]).reshape(entry["shape"])
        if not np.isfinite(tensors[key]).all():
            raise AdapterError(f"Tensor {key!r} holds NaN or infinity.", "The training diverged; use another adapter.")
    return tensors


def _decoded(data: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    if dtype == "BF16":  # the upper half of a float32
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float64 if dtype == "F64" else "<f4")


def write_pairs(folder: Path | str, pairs: AdapterPairs, **changes: Any) -> Path:
    """Write products as a PEFT LoRA folder of scale 1, in float32, and return it; `changes` are config fields.

    Raises AdapterError when the folder holds something already.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise AdapterError(f"{folder.name!r} is not empty.", "Choose another folder, or empty it first.")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: np.ascontiguousarray(value, dtype=np.float32) for key, value in pairs.others.items()}
    for path, product in pairs.products.items():
        kind = "lora_embedding_{}" if path in pairs.embeddings else "lora_{}.weight"
        for letter, factor in (("A", product.a), ("B", product.b)):
            tensors[f"{PREFIX}{path}.{kind.format(letter)}"] = np.ascontiguousarray(factor, dtype=np.float32)
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    values = {**_config(pairs), **changes}
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    write_method(folder, read_adapter_config(folder), pairs.quantization)
    return folder


def _config(pairs: AdapterPairs) -> dict[str, Any]:
    r, pattern = shortest_pattern({path: product.rank for path, product in pairs.products.items()})
    kept = {name: pairs.values[name] for name in _KEPT if name in pairs.values}
    same = {"rank_pattern": dict(sorted(pattern.items())), "alpha_pattern": dict(sorted(pattern.items()))}
    return {**LORA_FIELDS, **kept, "r": r, "lora_alpha": r, **same}
