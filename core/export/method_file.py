"""`method.json` in an adapter's folder: the settings for which PEFT's adapter_config.json has no field. Torch-free.

Written only for methods that PEFT's two LoRA flavours do not cover. Where there is one, it is the adapter's config.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from core.config import AdapterConfig, from_dict, to_dict
from core.errors import AdapterError, ConfigError

METHOD_NAME = "method.json"
MAX_METHOD_BYTES = 4 << 20
_IN_PEFT = ("lora", "rslora")  # adapter_config.json says everything about them


def write_method(folder: Path, config: AdapterConfig) -> None:
    """Write an adapter's own settings beside its PEFT files, unless those say it all."""
    if config.method not in _IN_PEFT:
        text = json.dumps({"adapter": to_dict(config)}, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / METHOD_NAME).write_text(text + "\n", encoding="utf-8")


def read_method(folder: Path) -> AdapterConfig | None:
    """The settings in `method.json`, None without one; AdapterError when they cannot be honoured."""
    path = folder / METHOD_NAME
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_METHOD_BYTES:
            raise ValueError("it is larger than 4 MiB")
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        config = from_dict(AdapterConfig, values["adapter"])
    except ConfigError as error:
        raise AdapterError(f"{METHOD_NAME} of {folder.name!r}: {error.what}", error.fix) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{METHOD_NAME} of {folder.name!r} cannot be read: {error}.", "Save it again.") from None
    for key in (*config.rank_pattern, *config.alpha_pattern):
        if not is_safe_pattern(key):
            raise AdapterError(f"{METHOD_NAME} has the pattern {key!r}, which is too complex.", "Name the layers.")
    return config


def is_safe_pattern(pattern: str) -> bool:
    """True for regular expressions that end in a short time on module names: no repeated group, few repetitions."""
    return len(pattern) <= 512 and not re.search(r"\)[*+{]", pattern) and len(re.findall(r"[*+{]", pattern)) <= 3
