"""What a training run needs in memory, part by part, before a weight is loaded. Torch-free.

Weights, adapter, gradients and moments follow exactly from the settings. Activations follow from what autograd keeps
of each layer and token, and of the scores of attention (`core/score_memory.py`); the factors are those counted for
Llama-shaped layers, older shapes such as GPT-2 need more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.config import TrainConfig
from core.methods import methods
from core.ops.coverage import is_fused
from core.quantize.size import NONE, packed_bytes
from core.score_memory import bytes_per_score

if TYPE_CHECKING:
    from core.models import ModelInfo

ALLOCATOR = "expandable_segments:True"  # of torch on CUDA: no holes between the pieces of batches of many sizes
LOGIT_CHUNK_BYTES = 1 << 28  # float32 logits that the loss holds at once
LOGIT_COPIES = 3  # logits, their log-softmax, their gradient
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
MASTER_BYTES = 4  # adapters are trained in float32
MOMENTS = 2  # AdamW keeps two numbers for every trained one
HIDDEN_KEPT, INNER_KEPT = 9, 4  # numbers kept per token and layer, in widths of the hidden and of the inner state
HIDDEN_DROPPED = 4  # further ones with dropout: every target keeps an input of its own
HIDDEN_FUSED, INNER_FUSED, HIDDEN_SCALED = 5, 2, 4  # on the fast path, dropout or not; further ones for DoRA


def estimate_memory(
    info: ModelInfo, config: TrainConfig, micro_batch_size: int, length: int, dtype: str = "", on_gpu: bool = False
) -> dict[str, int]:
    """Bytes by part (weights, adapter, gradients, optimizer, activations, logits) for micro-batches of that size.

    `dtype` is the number format of the base in use; empty takes the one of `config`, or else the model's own.
    """
    size = BYTES.get(dtype or (config.dtype if config.dtype != "auto" else info.dtype), 4)
    trained = methods.get(config.adapter.method).trainable_parameters(info, config.adapter)
    tokens = micro_batch_size * length
    scores = micro_batch_size * length**2 * info.heads * info.layers * bytes_per_score(info, size, on_gpu)
    logits = LOGIT_COPIES * min(LOGIT_CHUNK_BYTES, 4 * tokens * info.vocab_size)
    return {
        "weights": _weight_bytes(info, config.quantization, size),
        "adapter": trained * MASTER_BYTES,
        "gradients": trained * MASTER_BYTES,
        "optimizer": trained * MASTER_BYTES * MOMENTS,
        "activations": tokens * info.layers * _kept_per_token(info, config) * size
        + scores
        + _unpacked_bytes(info, config.quantization, size),
        "logits": logits,
    }


def _weight_bytes(info: ModelInfo, quantization: str, size: int) -> int:
    """Bytes of the frozen base; a quantised one has embeddings, norms and output layer in `size` bytes a number."""
    if quantization == NONE:
        return info.parameters * size
    linear = info.linear_targets()
    packed = sum(packed_bytes(quantization, *shape) for target in linear for shape in target.shapes)
    return packed + (info.parameters - sum(target.parameters for target in linear)) * size


def _unpacked_bytes(info: ModelInfo, quantization: str, size: int) -> int:
    """Bytes of the one layer that is unpacked at a time, at worst."""
    shapes = [shape for target in info.linear_targets() for shape in target.shapes]
    return 0 if quantization == NONE else size * max((d_in * d_out for d_in, d_out in shapes), default=0)


def _kept_per_token(info: ModelInfo, config: TrainConfig) -> int:
    inner = info.intermediate_size or 4 * info.hidden_size  # GPT-2 leaves it out and means this
    if is_fused(info.model_type, config):
        scaled = HIDDEN_SCALED if config.adapter.method == "dora" else 0
        return (HIDDEN_FUSED + scaled) * info.hidden_size + INNER_FUSED * inner
    dropped = HIDDEN_DROPPED if config.adapter.lora_dropout else 0
    return (HIDDEN_KEPT + dropped) * info.hidden_size + INNER_KEPT * inner
