"""What training keeps of attention's scores, (H, t, t) a row and layer, where no kernel does without them. Torch-free.

It grows with the square of the length: small beside the rest up to some hundred tokens, and everything at 10,000.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.models import ModelInfo

# Model types, as configs name them, whose attention transformers computes step by step,
EAGER = frozenset({
    "bloom", "canine", "codegen", "convbert", "cpmant", "deberta", "deberta-v2", "deepseek_v4", "flaubert", "flint",
    "fsmt", "funnel", "gemma2", "git", "got_ocr2", "gpt_neo", "gpt_neox_japanese", "gpt_oss", "gptj", "granite_swa",
    "granitemoe_swa", "hy_v4", "ibert", "inkling2_text", "layoutlmv2", "layoutlmv3", "lilt", "luke", "markuplm",
    "megatron-bert", "mimo_v2_flash", "mpnet", "mpt", "mvp", "nllb-moe", "openai-gpt", "pegasus_x", "prophetnet",
    "rembert", "roformer", "squeezebert", "switch_transformers", "t5gemma", "tapas", "trocr", "vaultgemma", "xglm",
    "xlm", "xlnet",
})  # fmt: skip
# and those that add something of every pair of positions to their scores, which is kept instead.
BIASED = frozenset({"falcon", "mt5", "t5", "umt5"})
FLOAT = 4  # bytes


def bytes_per_score(info: ModelInfo, size: int, on_gpu: bool) -> int:
    """Bytes that autograd keeps of each score, in a base of `size` bytes a number; 0 where a kernel keeps none.

    Steps keep the weights, in 16 bits twice and once in float32; a cap keeps its tanh. Dropout keeps weights, mask and
    what is left in float32, as torch's kernel for a CPU cannot drop any.
    """
    by_steps, capped = info.model_type in EAGER, size if info.caps_scores else 0
    if info.drops_scores and (by_steps or not on_gpu):
        return 3 * FLOAT + capped
    if by_steps:
        return (FLOAT if size >= FLOAT else FLOAT + size) + capped
    return size if info.model_type in BIASED else 0
