"""What training keeps of attention's scores, (H, t, t) a row and layer, where no kernel does without them. Torch-free.

It grows with the square of the length: small beside the rest up to some hundred tokens, and everything at 10,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.model_config import read_config

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
CAPPED = "attn_logit_softcapping"
DROPOUTS = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "dropout_rate")  # on what scores become
FLOAT = 4  # bytes


def bytes_per_score(info: ModelInfo, size: int, on_gpu: bool) -> int:
    """Bytes that autograd keeps of each score, in a base of `size` bytes a number; 0 where a kernel keeps none.

    Steps keep the weights, in 16 bits twice and once in float32; a cap keeps its tanh. Dropout keeps weights, mask and
    what is left in float32, as torch's kernel for a CPU cannot drop any.
    """
    config = read_config(info.folder)
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    by_steps = info.model_type in EAGER
    capped = size if text.get(CAPPED) else 0
    if _drops(text) and (by_steps or not on_gpu):
        return 3 * FLOAT + capped
    if by_steps:
        return (FLOAT if size >= FLOAT else FLOAT + size) + capped
    return size if info.model_type in BIASED else 0


def _drops(config: Mapping[str, Any]) -> bool:
    return any(isinstance(share := config.get(name), float) and share > 0 for name in DROPOUTS)
