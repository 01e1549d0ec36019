"""What the fast path covers, for whoever plans a run. Torch-free."""

from __future__ import annotations

from collections.abc import Callable

from core.config import AdapterConfig, TrainConfig
from core.methods.delta_lora import DeltaLoRAOptions
from core.methods.dynamic_rank import DynamicRankOptions
from core.methods.sparse_lora import FEW_BLOCKS, SparseLoRAOptions

MODEL_TYPES = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "phi3"}
)  # as transformers' configs name them
_FORMS: dict[str, Callable[[AdapterConfig], bool]] = {  # by method: whether it has a fused form with its options
    **dict.fromkeys(("lora", "rslora", "lora_plus", "lora_fa", "lora_drop", "adalora"), lambda adapter: True),
    "dora": lambda adapter: not adapter.lora_dropout,
    "dynamic_rank": lambda adapter: not DynamicRankOptions(**adapter.method_options).nested,
    "delta_lora": lambda adapter: DeltaLoRAOptions(**adapter.method_options).mode == "functional",
    "sparse_lora": lambda adapter: _is_one_matrix(SparseLoRAOptions(**adapter.method_options)),
}


def _is_one_matrix(options: SparseLoRAOptions) -> bool:
    return options.mode != "block" or options.blocks <= FEW_BLOCKS


def is_fused(model_type: str, config: TrainConfig) -> bool:
    """Whether a run's decoder layers will take the fast path."""
    adapter = config.adapter
    if adapter.bias != "none" or adapter.modules_to_save or not config.fast_path or model_type not in MODEL_TYPES:
        return False
    return adapter.method in _FORMS and _FORMS[adapter.method](adapter)
