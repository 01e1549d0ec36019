"""Which family a model is of, told by its config alone: it decides what the model can learn. Torch-free.

A causal model continues a text; an encoder (BERT and its kin) reads one and writes none; a seq2seq model (T5, BART and
their kin) turns one text into another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.model_config import architecture

CAUSAL, ENCODER, SEQ2SEQ = "causal", "encoder", "seq2seq"
ENCODERS = frozenset({
    "albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "esm",
    "eurobert", "flaubert", "fnet", "ibert", "mobilebert", "modernbert", "mpnet", "nomic_bert", "nystromformer",
    "rembert", "roberta", "roberta-prelayernorm", "roformer", "squeezebert", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
_WRITERS = ("ForCausalLM", "LMHeadModel")  # the rare encoder that was trained to continue texts


def family_of(config: Mapping[str, Any]) -> str:
    """The family of the model that a `config.json` describes: causal, encoder or seq2seq."""
    if config.get("is_encoder_decoder"):
        return SEQ2SEQ
    is_encoder = str(config.get("model_type", "")) in ENCODERS
    return ENCODER if is_encoder and not architecture(config).endswith(_WRITERS) else CAUSAL
