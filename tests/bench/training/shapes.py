"""Models of known shapes with random weights, made on the device: the same numbers in every process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LONGEST = 1 << 17  # positions the config allows


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int

    @property
    def key_width(self) -> int:
        """Width of keys and of values."""
        return self.width // self.heads * self.key_heads

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied by: all but the input embedding."""
        per_layer = 2 * self.width * (self.width + self.key_width) + 3 * self.width * self.inner
        return self.layers * per_layer + self.vocabulary * self.width

    def useful_flops(self, lengths: list[int], r: int) -> float:
        """Operations of one step on sequences of these lengths that nobody can do without.

        Forward and input gradient of the frozen weights (4 a weight and token), the adapter's three products
        (6 a parameter), and causal attention, whose backward pass is twice its forward pass. Recomputing earns nothing.
        """
        a_layer = 3 * (self.width + self.inner) + 2 * (self.width + self.key_width) + 2 * self.width
        adapter = r * self.layers * a_layer
        attention = 6 * self.layers * self.width * sum(length**2 for length in lengths)
        return (4.0 * self.matmul_parameters + 6.0 * adapter) * sum(lengths) + attention


SHAPES = {
    "8b": Shape(128_256, 4096, 14_336, 32, 32, 8),
    "1b": Shape(128_256, 2048, 8192, 16, 32, 8),
    "135m": Shape(49_152, 576, 1536, 30, 9, 3),
    "tiny": Shape(512, 64, 96, 2, 4, 2),
}


def random_model(name: str, device: str, has_biases: bool = False) -> Any:
    """A Llama of a shape in bfloat16, or a Qwen2, which has biases; seeded; only transformers is needed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    shape = SHAPES[name]
    settings, kind = (Qwen2Config, Qwen2ForCausalLM) if has_biases else (LlamaConfig, LlamaForCausalLM)
    config = settings(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads,
        max_position_embeddings=LONGEST, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_theta": 500_000.0, "rope_type": "default"}, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return kind(config)
    finally:
        torch.set_default_dtype(torch.float32)


def saved_model(name: str, device: str, scratch: Path) -> Path:
    """The folder of that model, for rivals that only read files; written by whoever asks first."""
    folder = scratch / name
    if not (folder / "config.json").exists():
        random_model(name, device).save_pretrained(folder)
        _word_tokenizer().save_pretrained(folder)
    return folder


def _word_tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"<{index}>": index for index in range(500)}, unk_token="<0>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<0>", bos_token="<1>", eos_token="<2>", unk_token="<0>"
    )
