"""`method.json` in an adapter's folder: the settings for which PEFT's adapter_config.json has no field. Torch-free.

Its "adapter" is written only for methods that PEFT's two LoRA flavours do not cover, and then is the adapter's config;
its "quantization" only for an adapter that was trained on a quantised base.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from core.config import AdapterConfig, from_dict, to_dict
from core.errors import AdapterError, ConfigError
from core.quantize.size import NONE, QUANTIZATIONS

METHOD_NAME = "method.json"
MAX_METHOD_BYTES = 4 << 20
_IN_PEFT = ("lora", "rslora")  # adapter_config.json says everything about them


def write_method(folder: Path, config: AdapterConfig, quantization: str = NONE) -> None:
    """Write an adapter's own settings beside its PEFT files, unless those say it all."""
    values: dict[str, Any] = {} if config.method in _IN_PEFT else {"adapter": to_dict(config)}
    if quantization != NONE:
        values["quantization"] = quantization
    if values:
        text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / METHOD_NAME).write_text(text + "\n", encoding="utf-8")


def read_method(folder: Path) -> AdapterConfig | None:
    """The settings in `method.json`, None without any; AdapterError when they cannot be honoured."""
    values = _read(folder)
    if values.keys() <= {"quantization"}:
        return None
    try:
        config = from_dict(AdapterConfig, values["adapter"])
        _refuse_wrong_types(config)
    except ConfigError as error:
        raise AdapterError(f"{METHOD_NAME} of {folder.name!r}: {error.what}", error.fix) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(folder, error) from None
    for key in (*config.rank_pattern, *config.alpha_pattern):
        if not is_safe_pattern(key):
            raise AdapterError(f"{METHOD_NAME} has the pattern {key!r}, which is too complex.", "Name the layers.")
    return config


def _refuse_wrong_types(config: AdapterConfig) -> None:
    for name, hint in get_type_hints(AdapterConfig).items():
        if not _fits(getattr(config, name), hint):
            raise TypeError(f"{name} is {getattr(config, name)!r}"[:200])


def _fits(value: Any, hint: Any) -> bool:
    kind, inside = get_origin(hint) or hint, get_args(hint)
    if kind is UnionType:
        return any(_fits(value, one) for one in inside)
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(one, inside[0]) for one in value)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(_fits(one, inside[1]) for one in value.values())
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return kind is Any or type(value) is kind


def read_quantization(folder: Path) -> str:
    """How the base was quantised that the adapter in a folder was trained on: none, nf4 or int8."""
    quantization = _read(folder).get("quantization", NONE)
    if quantization not in QUANTIZATIONS:
        raise _unreadable(folder, ValueError(f"quantization is {quantization!r}"))
    return str(quantization)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / METHOD_NAME
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_METHOD_BYTES:
            raise ValueError("it is larger than 4 MiB")
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(folder, error) from None
    return values


def _unreadable(folder: Path, error: Exception) -> AdapterError:
    return AdapterError(f"{METHOD_NAME} of {folder.name!r} cannot be read: {error}.", "Save it again.")


def is_safe_pattern(pattern: str) -> bool:
    """True for regular expressions that end in a short time on module names: no repeated group, few repetitions."""
    return len(pattern) <= 512 and not re.search(r"\)[*+{]", pattern) and len(re.findall(r"[*+{]", pattern)) <= 3
