"""The training library: adapters, data, training and merging for transformers models. No SQL, HTTP, UI or processes.

    config.py errors.py registry.py   settings, errors with a remedy, named implementations; torch-free
    models.py                         what a base model is, and loading it safely
    adapters/                         one file per method (lora, rslora, ...), inject, switch, merge in memory
    data/                             files to records to tokens to batches; one file per format
    train.py                          the Trainer: read this first
    optim.py loss.py evaluate.py      what a step is made of
    checkpoint.py                     stop and go on, bit for bit
    generate.py                       streaming text, another adapter per row if wanted
    export/                           PEFT folders, and model folders for plain transformers
    merge.py verify.py                base + adapter to a model folder, and proof that it says the same
    memory.py                         what a run will need

Names are imported on first use, so that `import core` does not import torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from core.collector import collection_put_off

if TYPE_CHECKING:
    from core.adapters import (
        adapter_config,
        adapter_names,
        adapter_parameters,
        adapter_rows,
        adapter_state_dict,
        inject,
        load_adapter_state_dict,
        merge,
        remove_adapter,
        set_adapter,
        unmerge,
    )
    from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig
    from core.data.dataset import load_dataset
    from core.export.peft import load_adapter, save_adapter
    from core.generate import generate
    from core.merge import merge_to_folder, verify_merge
    from core.models import load_model
    from core.train import Trainer

_HOME = {
    "core.adapters": (
        "adapter_config adapter_names adapter_parameters adapter_rows adapter_state_dict inject "
        "load_adapter_state_dict merge remove_adapter set_adapter unmerge"
    ),
    "core.config": "AdapterConfig DataConfig OptimConfig TrainConfig",
    "core.data.dataset": "load_dataset",
    "core.export.peft": "load_adapter save_adapter",
    "core.generate": "generate",
    "core.merge": "merge_to_folder verify_merge",
    "core.models": "load_model",
    "core.train": "Trainer",
}
_PUBLIC = {name: module for module, names in _HOME.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'core' has no attribute {name!r}")
    with collection_put_off():
        value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


class _Core(ModuleType):
    """Keeps `core.merge` and `core.generate` the functions, also after the files of the same name were imported.

    Importing a submodule sets it as an attribute of its package, which would hide the public function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Core

__all__ = [
    "AdapterConfig",
    "DataConfig",
    "OptimConfig",
    "TrainConfig",
    "Trainer",
    "adapter_config",
    "adapter_names",
    "adapter_parameters",
    "adapter_rows",
    "adapter_state_dict",
    "generate",
    "inject",
    "load_adapter",
    "load_adapter_state_dict",
    "load_dataset",
    "load_model",
    "merge",
    "merge_to_folder",
    "remove_adapter",
    "save_adapter",
    "set_adapter",
    "unmerge",
    "verify_merge",
]
