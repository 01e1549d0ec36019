"""A model's config.json: a stranger's file that says which code runs and how much memory it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import MissingModelError, ModelError
from core.weight_files import read_object

_DROPOUTS = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "dropout_rate")
_COUNT = re.compile(r"(layers?|heads?|blocks|experts)$")


def read_config(folder: Path) -> dict[str, Any]:
    """Return `config.json` of a model folder after refusing what could run code or cannot be trained on."""
    if not folder.is_dir():
        raise MissingModelError(f"There is no model folder {folder.name!r}.", "Check the path, or add the model again.")
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder.name!r} has no config.json, so it is not a transformers model.",
            "Pick the folder that holds config.json and *.safetensors.",
        )
    config = read_object(path)
    _refuse_unsafe(folder, config)
    return config


def _refuse_unsafe(folder: Path, config: Mapping[str, Any]) -> None:
    for key in _all_keys(config):
        if key in ("auto_map", "custom_pipelines", "trust_remote_code") or key.endswith("_internal"):
            raise ModelError(
                f"{folder.name!r} asks to run its own Python code ({key!r} in config.json).",
                "For your safety that is never done; pick a model that transformers supports by itself.",
            )
    if "quantization_config" in config:
        settings = config["quantization_config"]
        method = settings.get("quant_method", "unknown") if isinstance(settings, dict) else "unknown"
        raise ModelError(
            f"{folder.name!r} is already quantised ({method}).", "Pick the model's original 16-bit weights."
        )
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
        if pickles:
            raise ModelError(
                f"{folder.name!r} has only pickle weights ({pickles[0]}), which can run code when they are opened.",
                "Pick a version of the model with *.safetensors files.",
            )
        raise ModelError(f"{folder.name!r} has no *.safetensors weights.", "Download the model again.")


def _all_keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield str(key)
            yield from _all_keys(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _all_keys(entry)


def refuse_absurd(folder: Path, config: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise ModelError when a config claims more modules than tensors of these shapes could fill."""
    most = max([len(shapes), *(size for shape in shapes for size in shape)])
    for key, value in _counts(config):
        if not value <= most:  # also for NaN
            raise ModelError(
                f"config.json of {folder.name!r} claims {key} = {value:,}, but its files hold {len(shapes):,} tensors.",
                "Download the model again.",
            )


def _counts(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a config, and of those inside it, that say how many modules there are to make."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _counts(value)
        elif isinstance(value, (int, float)) and _COUNT.search(key):
            yield key, value


def architecture(config: Mapping[str, Any]) -> str:
    """The class that a config names, "" without one."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def drops_scores(config: Mapping[str, Any]) -> bool:
    """Whether a config has dropout on what attention's scores become."""
    return any(isinstance(share := config.get(name), float) and share > 0 for name in _DROPOUTS)


def caps_scores(config: Mapping[str, Any]) -> bool:
    """Whether a config has attention's scores bounded, as Gemma 2's."""
    return bool(config.get("attn_logit_softcapping"))
