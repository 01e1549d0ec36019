"""Adapters as PEFT folders: adapter_config.json and adapter_model.safetensors, as peft 0.21 writes and reads them.

Module level is torch-free, so that a library screen can call `read_adapter_config`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from core.collector import collection_put_off
from core.config import AdapterConfig
from core.errors import AdapterError
from core.export.method_file import is_safe_pattern, write_method
from core.export.peft_config import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    peft_values,
    read_adapter_config,
    read_shapes,
    target_paths,
    weights_file,
)
from core.methods import methods
from core.selection import ALL_LINEAR, pattern_value

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["load_adapter", "read_adapter_config", "save_adapter"]

P = TypeVar("P", int, float)
_REPEATED = re.compile(r"base_model\.model\.(.+)\.(base_layer|original_module|modules_to_save)\.(.+)")
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}


def save_adapter(model: nn.Module, folder: Path | str, name: str = "default", base_model: str = "") -> Path:
    """Write an adapter as a PEFT folder and return it; the same adapter gives the same bytes.

    `base_model` is the id or path that the file says the adapter belongs to.
    """
    from safetensors.torch import save_file

    from core.adapters import adapter_config, adapter_state_dict
    from core.quantize.model import quantization_of

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.cpu().contiguous() for key, tensor in adapter_state_dict(model, name).items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    text = json.dumps(_config_values(model, name, base_model), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    write_method(folder, adapter_config(model, name), quantization_of(model))
    return folder


def _config_values(model: nn.Module, name: str, base_model: str) -> dict[str, object]:
    from core.adapters.base import adapters, layer_kind
    from core.adapters.inject import known
    from core.adapters.targets import is_adaptable

    record = known(model, (name,))
    config = record.configs[name]
    method = adapters.get(config.method)
    targets = [path for path, host in record.hosts.items() if host.adapter(name) is not None]
    if config.target_parameters:  # whose modules are named there
        targets = [path for path in targets if is_adaptable(record.hosts[path].original)]
    architecture = type(model).__name__
    return peft_values(
        config,
        _portable_targets(model, config, targets),
        rank_pattern=_portable_pattern(config.rank_pattern, config.r, targets),
        alpha_pattern=_portable_pattern(config.alpha_pattern, config.lora_alpha, targets),
        peft_type=method.peft_type,
        fan_in_fan_out=any(layer_kind(record.hosts[path].original) == "conv1d" for path in targets),
        base_model_name_or_path=base_model or None,
        task_type=next((task for ending, task in _TASKS.items() if architecture.endswith(ending)), None),
        **method.peft_fields,
    )


def _portable_targets(model: nn.Module, config: AdapterConfig, targets: list[str]) -> str | list[str]:
    """Explicit targets as they were given; 'all-linear' as the short names when these mean the same, else as paths."""
    from core.adapters.targets import base_modules, find_targets

    if "target_modules" not in methods.get(config.method).uses:
        return targets
    if config.target_modules != ALL_LINEAR or not targets:
        return config.target_modules if isinstance(config.target_modules, str) else list(config.target_modules)
    short = tuple(sorted({path.rpartition(".")[2] for path in targets}))
    modules = base_modules(model)
    same = find_targets(model, modules, replace(config, target_modules=short), check=False) == targets
    return list(short) if same else targets


def _portable_pattern(pattern: Mapping[str, P], default: P, targets: list[str]) -> dict[str, P]:
    """A pattern that means the same with its keys sorted, as files have them: the first match counts, so order matters.

    Where sorting would change a layer's value, every layer is named by its whole path.
    """
    ordered = dict(sorted(pattern.items()))
    values = {path: pattern_value(pattern, path, default) for path in targets}
    if all(pattern_value(ordered, path, default) == value for path, value in values.items()):
        return ordered
    return dict(sorted(values.items()))


@collection_put_off()
def load_adapter(model: nn.Module, folder: Path | str, name: str = "default") -> list[str]:
    """Add the adapter of a PEFT folder to a model, make it the only active one, and return the adapted modules' names.

    Names, shapes and types are checked against the model before a tensor is read. Raises AdapterError with the
    differences listed, and then leaves the model as it was.
    """
    from core.adapters.inject import activate, adapters_of, attach, detach, plan_adapter

    folder = Path(folder)
    shapes = read_shapes(folder)
    plan = plan_adapter(model, _bounded(read_adapter_config(folder), folder), name, is_strict=False)
    before = adapters_of(model).active
    attach(model, plan, name, loads=True)
    try:
        _fill(model, folder, name, shapes)
    except BaseException:
        record = adapters_of(model)
        detach(model, record, name)
        activate(record, before)
        raise
    return plan.targets


def _bounded(config: AdapterConfig, folder: Path) -> AdapterConfig:
    """The config with expressions that could run for ever replaced by the modules that the file has tensors for."""
    patterns = [value for value in (config.target_modules, config.exclude_modules) if isinstance(value, str)]
    if all(is_safe_pattern(pattern) for pattern in patterns):
        return config
    return replace(config, target_modules=target_paths(folder), exclude_modules=())


def _fill(model: nn.Module, folder: Path, name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check the file's names and shapes against the adapter's, then read its tensors onto the base's devices."""
    from core.adapters.state import check_shapes, load_adapter_state_dict, stored_tensors

    own = {key: tuple(tensor.shape) for key, tensor in stored_tensors(model, name, shapes.keys()).items()}
    repeated = repeated_weights(key for key in shapes if key not in own)
    shorter = {key for key in own if key in shapes and _is_pruned(key, shapes[key], own[key])}
    check_shapes(own, {key: own[key] if key in shorter else shapes[key] for key in shapes if key not in repeated})
    state = _read_tensors(folder, set(own))
    _check_repeated(model, folder, repeated)
    load_adapter_state_dict(model, {key: _padded(tensor, own[key]) for key, tensor in state.items()}, name)


def _is_pruned(key: str, found: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Whether a tensor of AdaLoRA, as peft writes them, lacks directions that training has taken away."""
    axis = {"lora_A": 0, "lora_B": 1, "lora_E": 0}.get(key.rpartition(".")[2])
    if axis is None or len(found) != len(own):
        return False
    return found[axis] < own[axis] and found[1 - axis] == own[1 - axis]


def _padded(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor with zeros where it is shorter: a direction of AdaLoRA with a zero in E does nothing."""
    if tuple(tensor.shape) == shape:
        return tensor
    whole = tensor.new_zeros(shape)
    whole[tuple(slice(size) for size in tensor.shape)] = tensor
    return whole


def _read_tensors(folder: Path, keys: set[str]) -> dict[str, torch.Tensor]:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights_file(folder), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in sorted(keys)}
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{WEIGHTS_NAME} cannot be read: {error}.", "Save the adapter again.") from None
    if not torch.isfinite(torch.nn.utils.get_total_norm(tensors.values())):  # which may overflow by itself, too
        for key, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise AdapterError(
                    f"Tensor {key!r} holds NaN or infinity.", "The training diverged; use another adapter."
                )
    return tensors


def repeated_weights(keys: Iterable[str]) -> dict[str, str]:
    """The copies of base weights that peft stores (of targeted embeddings, or with bias="all"): key -> parameter."""
    found = {key: _REPEATED.fullmatch(key) for key in keys}
    return {key: f"{match[1]}.{match[3]}" for key, match in found.items() if match}


def check_repeated(key: str, stored: Tensor, base: Tensor) -> None:
    """Raise AdapterError when the base weight that comes with an adapter is not the one of this base model."""
    import torch

    if base.shape != stored.shape or not torch.equal(base.cpu(), stored.to(base.dtype)):
        raise AdapterError(
            f"The adapter brings its own base weight {key!r}, which differs from this model's.",
            "Load it on the base model, with the vocabulary, that it was trained on.",
        )


def _check_repeated(model: nn.Module, folder: Path, repeated: Mapping[str, str]) -> None:
    from core.adapters.targets import base_modules

    modules = base_modules(model) if repeated else {}
    for key, parameter in repeated.items():
        path, _, leaf = parameter.rpartition(".")
        base = getattr(modules.get(path), leaf, None)
        if base is not None and base.device.type != "meta" and ".modules_to_save." not in key:
            check_repeated(key, _read_tensors(folder, {key})[key], base)
