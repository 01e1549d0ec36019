"""Models small enough for unit tests, built from configs: random weights, nothing to download."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from core.adapters import adapter_parameters

VOCABULARY = 40


def llama(seed: int = 0, **changes: Any) -> Any:
    """A Llama of two layers with grouped key-value heads; embeddings not tied unless asked."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32,
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def gpt2(seed: int = 0) -> Any:
    """A GPT-2 of two layers: Conv1D projections, biases, tied embeddings."""
    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=VOCABULARY, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


def gemma3() -> Any:
    """A Gemma 3, which multiplies its embeddings by sqrt(width)."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=VOCABULARY,
    )
    return Gemma3ForCausalLM(config).eval()


BERT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def bert() -> Any:
    """A BERT classifier: a head that is trained whole."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**BERT, vocab_size=VOCABULARY)).eval()


def bert_masked() -> Any:
    """A BERT as it was pretrained: without the pooler that a classifier has."""
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**BERT, vocab_size=VOCABULARY)).eval()


def qwen3() -> Any:
    """A Qwen 3, which normalises its queries and keys."""
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, vocab_size=VOCABULARY, max_position_embeddings=32,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def mixtral() -> Any:
    """A mixture of three experts, which are one 3-D parameter."""
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=VOCABULARY, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=32,
    )  # fmt: skip
    config._experts_implementation = "eager"  # the grouped product has no float64
    return MixtralForCausalLM(config).eval()


def qwen3_moe() -> Any:
    """Another mixture, whose experts have other names in its files."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        hidden_size=16, moe_intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, vocab_size=VOCABULARY, num_experts=3, num_experts_per_tok=2, max_position_embeddings=32,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config).eval()


def qwen2_moe() -> Any:
    """A mixture with an expert that all tokens share, and a gate of one output before it."""
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        hidden_size=16, moe_intermediate_size=8, shared_expert_intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, vocab_size=VOCABULARY, num_experts=3, num_experts_per_tok=2,
        max_position_embeddings=32,
    )  # fmt: skip
    return Qwen2MoeForCausalLM(config).eval()


def granite_moe() -> Any:
    """A mixture whose experts are two tensors in its files too, under other names, as is its router."""
    torch.manual_seed(0)
    config = GraniteMoeConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=VOCABULARY, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=32,
    )  # fmt: skip
    return GraniteMoeForCausalLM(config).eval()


def neox() -> Any:
    """A GPT-NeoX, whose output layer has another name in its files."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=VOCABULARY,
        max_position_embeddings=32,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval()


def t5() -> Any:
    """A T5 of one layer each way: encoder, decoder, no biases."""
    torch.manual_seed(0)
    config = T5Config(
        d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=VOCABULARY, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config).eval()


def bart() -> Any:
    """A BART of one layer each way: encoder, decoder, biases."""
    torch.manual_seed(0)
    config = BartConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=VOCABULARY, max_position_embeddings=32, pad_token_id=1,
        bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


def tokens(rows: int = 3, length: int = 6, seed: int = 5) -> Tensor:
    """Token ids, (rows, length)."""
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def forward(model: Any, ids: Tensor) -> Tensor:
    """The model's logits; a decoder behind an encoder reads the texts backwards."""
    more = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
    found: Tensor = model(input_ids=ids, **more).logits
    return found


def logits(model: Any, ids: Tensor) -> Tensor:
    """The model's logits, detached."""
    with torch.no_grad():
        return forward(model, ids)


def shake(model: nn.Module, name: str = "default", size: float = 0.05, seed: int = 9) -> None:
    """Move an adapter away from its start values, so that it changes the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(model, name):
            parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
