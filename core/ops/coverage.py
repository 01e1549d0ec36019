"""What the fast path covers, for whoever plans a run. Torch-free."""

from __future__ import annotations

from core.config import TrainConfig

MODEL_TYPES = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "phi3"}
)  # as transformers' configs name them
METHODS = frozenset({"lora", "rslora", "lora_plus", "lora_fa", "dora"})


def is_fused(model_type: str, config: TrainConfig) -> bool:
    """Whether a run's decoder layers will take the fast path."""
    adapter = config.adapter
    if adapter.bias != "none" or adapter.modules_to_save or (adapter.method == "dora" and adapter.lora_dropout):
        return False
    return config.fast_path and model_type in MODEL_TYPES and adapter.method in METHODS
