"""What the fast path covers, for whoever plans a run. Torch-free."""

from __future__ import annotations

from collections.abc import Callable

from core.config import AdapterConfig, TrainConfig
from core.methods.method import options_of
from core.methods.sparse_lora import FEW_BLOCKS

MODEL_TYPES = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "phi3"}
)  # as transformers' configs name them
_FORMS: dict[str, Callable[[AdapterConfig], bool]] = {  # by method: whether it has a fused form with its options
    **dict.fromkeys(("lora", "rslora", "lora_plus", "lora_fa", "lora_drop", "adalora"), lambda adapter: True),
    "dora": lambda adapter: not adapter.lora_dropout,
    "dynamic_rank": lambda adapter: not options_of(adapter).nested,
    "delta_lora": lambda adapter: options_of(adapter).mode == "functional",
    "sparse_lora": lambda adapter: options_of(adapter).mode != "block" or options_of(adapter).blocks <= FEW_BLOCKS,
}


def is_fused(model_type: str, config: TrainConfig) -> bool:
    """Whether a run's decoder layers will take the fast path."""
    adapter = config.adapter
    if adapter.bias != "none" or adapter.modules_to_save or not config.fast_path or model_type not in MODEL_TYPES:
        return False
    return adapter.method in _FORMS and _FORMS[adapter.method](adapter)
