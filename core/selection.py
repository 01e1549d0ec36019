"""Which layers an adapter goes on, by PEFT's rules for names. Torch-free.

The trainer applies the rules to a loaded model (`core/adapters/targets.py`); a form and a plan apply the same ones to
what the weight files say, so that both count alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from core.errors import ConfigError

if TYPE_CHECKING:
    from core.config import AdapterConfig
    from core.models import ModelInfo, Target

ALL_LINEAR = "all-linear"
SHARED_EMBEDDING = "shared"  # of an encoder-decoder: a table that the embeddings of both sides are tied to
MAMBA_STEP, MAMBA_MARK = "dt_proj", "A_log"  # a Mamba layer has both; it reads the first one's weight and never runs it
V = TypeVar("V")
_ROUTER = re.compile(r"(.*\.)?(gate|shared_expert_gate|\w*router\w*)(\..*)?")


def matches(name: str, wanted: str | Collection[str]) -> bool:
    """PEFT's rule: a string is a regular expression for the whole name; an entry of a list is the name or its end.

    Raises ConfigError when the string is not a regular expression.
    """
    if isinstance(wanted, str):
        try:
            return re.fullmatch(wanted, name) is not None
        except re.error as error:
            raise _bad_pattern(error) from None
    return any(ending in wanted for ending in endings(name))


def endings(name: str) -> list[str]:
    """The name and what follows each of its dots: "a.b.c", "b.c", "c"."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def pattern_value(pattern: Mapping[str, V], name: str, default: V) -> V:
    """The value of the first key that fits the end of `name`, as PEFT reads rank_pattern and alpha_pattern.

    Raises ConfigError when a key is not a regular expression.
    """
    try:
        return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), default)
    except re.error as error:
        raise _bad_pattern(error) from None


def shortest_pattern(values: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """The commonest of the layers' values (the higher of two), and a pattern with the layers that have another."""
    counts = Counter(values.values())
    default = max(counts, key=lambda value: (counts[value], value))
    return default, {path: value for path, value in values.items() if value != default}


def is_router(path: str) -> bool:
    """Whether a layer is the one that sends tokens to a mixture's experts: small, and best left as it was trained."""
    return _ROUTER.fullmatch(path) is not None


def is_saved(path: str, entries: Collection[str]) -> bool:
    """Whether `modules_to_save` names this module or one around it, which is then trained whole.

    By PEFT's rule for these: an entry is the end of the name, and so may be the end of its last part ("norm").
    """
    parts = path.split(".")
    around = (".".join(parts[:stop]) for stop in range(1, len(parts) + 1))
    return any(name.endswith(entry) for name in around for entry in entries)


def selected_targets(info: ModelInfo, adapter: AdapterConfig) -> tuple[Target, ...]:
    """The layers of a model that get an adapter; a target keeps those of its layers that are meant.

    Raises ConfigError when a pattern is not a regular expression.
    """
    is_all = isinstance(adapter.target_modules, str) and adapter.target_modules.lower() == ALL_LINEAR

    def is_selected(target: Target, path: str) -> bool:
        return (
            (target.is_linear if is_all else matches(path, adapter.target_modules))
            and not (adapter.exclude_modules and matches(path, adapter.exclude_modules))
            and not is_saved(path, adapter.modules_to_save)
        )

    parts = (_keep(target, [is_selected(target, path) for path in target.paths]) for target in info.targets)
    return tuple(part for part in parts if part.count)


def _keep(target: Target, flags: list[bool]) -> Target:
    kept = [pair for pair, flag in zip(zip(target.shapes, target.paths, strict=True), flags, strict=True) if flag]
    return replace(target, shapes=tuple(shape for shape, _ in kept), paths=tuple(path for _, path in kept))


def _bad_pattern(error: re.error) -> ConfigError:
    return ConfigError(f"{error.pattern!r} is not a regular expression: {error}.", "Correct it.")
