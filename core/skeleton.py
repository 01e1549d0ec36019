"""A model's modules without its weights: which layers there are, of which kind, and which are tied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.errors import ModelError


def model_class(config: dict[str, Any]) -> Any:
    """The transformers class a config names, or the causal one of its model type."""
    import transformers

    name = str((config.get("architectures") or [""])[0])
    found = getattr(transformers, name, None) if name else None
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model else transformers.AutoModelForCausalLM


def make_skeleton(config: dict[str, Any], folder: Path) -> nn.Module:
    """The model of a folder with its modules in place and no memory behind its weights."""
    from transformers import AutoConfig

    try:
        with torch.device("meta"):
            settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            kind = model_class(config)
            model = kind.from_config(settings) if hasattr(kind, "from_config") else kind(settings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"The model in {folder.name!r} cannot be built: {error}", "Update transformers.") from error
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    skeleton: nn.Module = model
    return skeleton
