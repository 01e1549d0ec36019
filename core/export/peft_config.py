"""PEFT's adapter_config.json: to an AdapterConfig and back, refusing what could not be honoured. Torch-free.

An adapter folder is untrusted input: the file is bounded, every value is checked, and no regular expression of it runs
that could take exponential time. Fields as written by peft 0.21.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.config import AdapterConfig
from core.errors import AdapterError, ConfigError, ModelError
from core.export.method_file import is_safe_pattern, read_method
from core.export.peft_fields import FIELDS, IGNORED, PLAIN_STARTS, REFUSED
from core.methods import options_of
from core.weight_files import read_header

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 4 << 20
MAX_INTEGER = 2**63


def read_adapter_config(folder: Path | str) -> AdapterConfig:
    """Read the config of a LoRA, rsLoRA, DoRA, VeRA or AdaLoRA adapter in PEFT's layout.

    Raises AdapterError, which says what cannot be honoured, and why.
    """
    folder = Path(folder)
    values = read_values(folder)
    if (own := read_method(folder)) is not None:
        return own
    refuse_unknown(values)
    targets = values.get("target_modules")
    if values.get("layers_to_transform") not in (None, []):
        targets = target_paths(folder)  # the file itself says which of the layers were transformed
    try:
        return _config(values, targets)
    except ConfigError as error:
        raise AdapterError(f"{CONFIG_NAME} of {folder.name!r}: {error.what}", "Save the adapter again.") from None


def _config(values: Mapping[str, Any], targets: Any) -> AdapterConfig:
    return AdapterConfig(
        target_modules=_names("target_modules", targets, values.get("target_parameters")),
        target_parameters=tuple(_names("target_parameters", values.get("target_parameters"))),
        exclude_modules=_names("exclude_modules", values.get("exclude_modules")),
        modules_to_save=tuple(_names("modules_to_save", values.get("modules_to_save"))),
        bias=_typed(values, "bias", str, "none"),
        **_OF_KIND[values["peft_type"]](values),
    )


def _of_lora(values: Mapping[str, Any]) -> dict[str, Any]:
    use_rslora = _typed(values, "use_rslora", bool, False)
    plain = "rslora" if use_rslora else "lora"
    return {
        "method": "dora" if _typed(values, "use_dora", bool, False) else plain,
        "r": _typed(values, "r", int, 8),
        "lora_alpha": float(_typed(values, "lora_alpha", (int, float), 8)),
        "lora_dropout": float(_typed(values, "lora_dropout", (int, float), 0.0)),
        "rank_pattern": _pattern(values, "rank_pattern", int),
        "alpha_pattern": _pattern(values, "alpha_pattern", (int, float)),
        "use_rslora": use_rslora,
    }


def _of_adalora(values: Mapping[str, Any]) -> dict[str, Any]:
    """The rank at the start sets the scale; which directions are left, the tensors themselves say."""
    r = _typed(values, "init_r", int, 12)
    names = ("beta1", "beta2", "orth_reg_weight")
    own = {name: _typed(values, name, (int, float), None) for name in names if values.get(name) is not None}
    own |= {"target_r": min(_typed(values, "target_r", int, r), r)}
    return {
        "method": "adalora",
        "r": r,
        "lora_alpha": float(_typed(values, "lora_alpha", (int, float), 8)),
        "lora_dropout": float(_typed(values, "lora_dropout", (int, float), 0.0)),
        "method_options": own,
    }


def _of_vera(values: Mapping[str, Any]) -> dict[str, Any]:
    options = {
        "d_initial": float(_typed(values, "d_initial", (int, float), 0.1)),
        "projection_prng_key": _typed(values, "projection_prng_key", int, 0),
        "save_projection": _typed(values, "save_projection", bool, True),
    }
    return {
        "method": "vera",
        "r": _typed(values, "r", int, 256),
        "lora_dropout": float(_typed(values, "vera_dropout", (int, float), 0.0)),
        "method_options": options,
    }


_OF_KIND = {"LORA": _of_lora, "ADALORA": _of_adalora, "VERA": _of_vera}


def read_values(folder: Path) -> dict[str, Any]:
    """The raw values of adapter_config.json, from a file of bounded size."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise AdapterError(f"{folder.name!r} has no {CONFIG_NAME}, so it is not an adapter.", "Pick a PEFT folder.")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise AdapterError(f"{CONFIG_NAME} of {folder.name!r} is larger than 4 MiB.", "Pick another adapter.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{CONFIG_NAME} of {folder.name!r} cannot be read: {error}.", "Save it again.") from None
    if not isinstance(values, dict):
        raise AdapterError(f"{CONFIG_NAME} of {folder.name!r} is not an object.", "Save it again.")
    return values


def refuse_unknown(values: Mapping[str, Any]) -> None:
    """Raise AdapterError for a method or a setting whose effect this version does not have."""
    kind = values.get("peft_type")
    if not isinstance(kind, str) or kind not in _OF_KIND:
        raise AdapterError(f"This adapter's method is {kind!r}.", f"Known: {', '.join(sorted(_OF_KIND))}.")
    for name, what in REFUSED.items():
        if values.get(name):
            raise AdapterError(f"This adapter uses {what} ({name}).", "Merge it into its base with peft first.")
    start = values.get("init_lora_weights", True)
    if not any(start is plain or (isinstance(plain, str) and start == plain) for plain in PLAIN_STARTS):
        raise AdapterError(
            f"This adapter started from {start!r}, which changes the base model's own weights.",
            "Convert it with peft first: save_pretrained(..., path_initial_model_for_weight_conversion=...).",
        )
    for name, value in values.items():
        if name not in FIELDS[kind] and name not in IGNORED and value:
            raise AdapterError(f"This adapter has a setting {name!r} that is not known here.", "Update LoRA Studio.")


def weights_file(folder: Path) -> Path:
    """The adapter's safetensors file; pickle files are refused, because opening one can run code."""
    path = folder / WEIGHTS_NAME
    if path.is_file():
        return path
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt")):
        raise AdapterError(
            f"{folder.name!r} has only pickle weights, which can run code when they are opened.",
            "Save the adapter as safetensors.",
        )
    raise AdapterError(f"{folder.name!r} has no {WEIGHTS_NAME}.", "Save the adapter again.")


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of an adapter, from the header alone; AdapterError for other than float tensors."""
    path = weights_file(folder)
    try:
        tensors = read_header(path)
    except ModelError as error:
        raise AdapterError(error.what, "Save the adapter again.") from None
    for key, tensor in tensors.items():
        if tensor.dtype not in ("F64", "F32", "F16", "BF16"):
            raise AdapterError(
                f"Tensor {key!r} is of type {tensor.dtype}, not floating point.", "Save the adapter again."
            )
    return {key: tensor.shape for key, tensor in tensors.items()}


def target_paths(folder: Path) -> tuple[str, ...]:
    """The modules that a LoRA file holds tensors for."""
    ends = r"lora_A\.weight|lora_embedding_A|lora_A|vera_lambda_b"
    found = (re.fullmatch(rf"base_model\.model\.(.+)\.({ends})", key) for key in read_shapes(folder))
    return tuple(match.group(1) for match in found if match)


def peft_values(config: AdapterConfig, targets: str | Sequence[str], **facts: Any) -> dict[str, Any]:
    """All fields of an adapter_config.json; `facts` are those that the model decides, with peft_type among them.

    A method that PEFT does not know has LoRA's fields, and its own settings in `method.json`.
    """
    values = {
        "r": config.r,
        "lora_alpha": _whole(config.lora_alpha),  # Ollama reads an integer here
        "lora_dropout": config.lora_dropout,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "exclude_modules": _listed(config.exclude_modules),
        "target_parameters": _listed(config.target_parameters),
        "modules_to_save": _listed(config.modules_to_save),
        "use_rslora": config.use_rslora,
        "bias": config.bias,
        **_own_values(config),
        **facts,
    }
    fields = FIELDS.get(values["peft_type"], FIELDS["LORA"])
    if "alpha_pattern" in values:
        values["alpha_pattern"] = {key: _whole(alpha) for key, alpha in values["alpha_pattern"].items()}
    return {**fields, **{name: value for name, value in values.items() if name in fields}}


def _own_values(config: AdapterConfig) -> dict[str, Any]:
    """The fields that only VERA or ADALORA has."""
    if config.method not in ("vera", "adalora"):
        return {}
    own = vars(options_of(config))
    if config.method == "vera":
        return {**own, "vera_dropout": config.lora_dropout}
    names = ("beta1", "beta2", "orth_reg_weight")
    return {name: own[name] for name in names} | {"init_r": config.r, "target_r": own["target_r"] or config.r}


def _whole(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _listed(value: str | Sequence[str]) -> str | list[str] | None:
    return (value if isinstance(value, str) else sorted(value)) or None


def _typed(values: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    value = values.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or _is_vast(value):
        raise AdapterError(f"{name} in {CONFIG_NAME} is {value!r}.", "Save the adapter again.")
    return value


def _is_vast(value: Any) -> bool:
    """An integer beyond what a float holds, which JSON allows."""
    return isinstance(value, int) and abs(value) > MAX_INTEGER


def _names(name: str, value: Any, parameters: Any = None) -> str | tuple[str, ...]:
    if value is None or value == []:
        if name == "target_modules" and not parameters:
            raise AdapterError(f"{CONFIG_NAME} has no target_modules.", "Save the adapter again.")
        return ()
    if isinstance(value, str) and name != "modules_to_save":
        return value
    if not isinstance(value, (list, tuple)) or not all(isinstance(entry, str) for entry in value):
        raise AdapterError(f"{name} in {CONFIG_NAME} is not a list of names.", "Save the adapter again.")
    return tuple(value) if name == "modules_to_save" else tuple(sorted(value))


def _pattern(values: Mapping[str, Any], name: str, kind: Any) -> dict[str, Any]:
    pattern: dict[str, Any] = _typed(values, name, dict, {})
    for key, value in pattern.items():
        if isinstance(value, bool) or not isinstance(value, kind) or _is_vast(value) or not math.isfinite(value):
            raise AdapterError(f"{name} in {CONFIG_NAME} gives {key!r} the value {value!r}.", "Save the adapter again.")
        if not is_safe_pattern(key):
            raise AdapterError(f"{name} has the pattern {key!r}, which is too complex.", "Name the layers one by one.")
    return pattern
