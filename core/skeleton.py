"""A model's modules without its weights: which layers there are, of which kind, and which are tied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.errors import ModelError
from core.export.task_file import read_labels
from core.model_config import architecture


def model_class(config: dict[str, Any]) -> Any:
    """The transformers class a config names, or the causal one of its model type."""
    import transformers

    name = architecture(config)
    found = getattr(transformers, name, None) if name else None
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model else transformers.AutoModelForCausalLM


def adapted_config(config: dict[str, Any], adapter_folder: Path) -> dict[str, Any]:
    """A base's config as the adapter in a folder needs the model: of a classifier's, with its labels and head."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as HEADS

    labels = read_labels(adapter_folder)
    if labels is None:
        return config
    name = HEADS.get(str(config.get("model_type", "")))
    if name is None:
        raise ModelError(f"A model of the type {config.get('model_type')!r} cannot classify.", "Pick the right base.")
    return {**config, "architectures": [name], **labels.config_values()}


def make_skeleton(config: dict[str, Any], folder: Path) -> nn.Module:
    """The model that `config` describes, with its modules in place and no memory behind its weights.

    `config` is that of the model in `folder`, perhaps with another head (`adapted_config`).
    """
    try:
        with torch.device("meta"):
            settings = load_config(config, folder)
            kind = model_class(config)
            model = kind.from_config(settings) if hasattr(kind, "from_config") else kind(settings)
    except Exception as error:  # a damaged or hostile folder makes transformers raise anything
        raise ModelError(f"The model in {folder.name!r} cannot be built: {error}", "Update transformers.") from error
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    skeleton: nn.Module = model
    return skeleton


def load_config(config: dict[str, Any], folder: Path) -> Any:
    """transformers' config object of a folder, with the labels that `config` has."""
    from transformers import AutoConfig

    named = {key: config[key] for key in ("id2label", "label2id", "problem_type") if key in config}
    if "id2label" in named:
        named["id2label"] = {int(number): name for number, name in named["id2label"].items()}
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **named)
