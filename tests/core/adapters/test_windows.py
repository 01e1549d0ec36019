"""Trained positions in models whose layers look back a few tokens only: against plain transformers with its own mask.

Virtual tokens are tokens: they count for a window, and leave it, as any others do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from core.adapters import inject
from core.adapters.inject import adapters_of
from core.config import AdapterConfig, GenerationConfig
from core.data.records import Message
from core.data.rendering import encode_prompt
from core.generate import generate
from tests.core.adapters.tiny import logits, shake
from tests.core.toy import toy_tokenizer

TOKENS, WINDOW, NEW = 3, 6, 12
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": len(toy_tokenizer()), "max_position_embeddings": 256,
    "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": toy_tokenizer().eos_token_id,
    "pad_token_id": toy_tokenizer().pad_token_id, "sliding_window": WINDOW,
}  # fmt: skip
MIXED: dict[str, Any] = {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
MODELS: dict[str, Callable[[], Any]] = {
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, **MIXED)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **MIXED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, use_sliding_window=True, max_window_layers=1)),
}
METHODS: dict[str, dict[str, Any]] = {
    "prompt": {"method": "prompt", "method_options": {"tokens": TOKENS}},
    "prefix": {"method": "prefix", "method_options": {"tokens": TOKENS}},
    "prefix network": {"method": "prefix", "method_options": {"tokens": TOKENS, "projection": True, "hidden": 8}},
}


def mask(length: int, window: int) -> Tensor:
    """What every position sees, (1, 1, T, T): 0 or very little."""
    at = torch.arange(length)
    sees = (at[None] <= at[:, None]) & (at[:, None] - at[None] < (window or length))
    return torch.zeros(length, length).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]


@contextmanager
def overwritten(plain: Any, values: dict[str, Tensor]) -> Iterator[None]:
    """The first outputs of some layers are these."""

    def put(value: Tensor) -> Callable[..., Tensor]:
        return lambda module, args, out: torch.cat([value[None], out[:, len(value) :]], dim=1)

    with ExitStack() as stack:
        for path, value in values.items():
            stack.callback(plain.get_submodule(path).register_forward_hook(put(value)).remove)
        yield


@torch.no_grad()
def trained(plain: Any, model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The inputs of the positions before a text, (P, d), and the outputs of layers there, once `model` has run."""
    parts = {path: host.adapter("own") for path, host in adapters_of(model).hosts.items() if host.adapter("own")}
    values = {path: part.values() for path, part in parts.items() if hasattr(part, "values")}
    if values:
        return plain.get_input_embeddings()(torch.zeros(TOKENS, dtype=torch.long)), values
    return next(iter(parts.values())).vectors(), {}


@torch.no_grad()
def expected(plain: Any, before: Tensor, values: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Logits of a text after the trained positions, by the bare model with a mask that is written out, (T, V)."""
    inputs = torch.cat([before, plain.get_input_embeddings()(torch.tensor(ids))])[None]
    length = inputs.shape[1]
    kinds = {"sliding_attention": mask(length, WINDOW), "full_attention": mask(length, 0)}
    masks = kinds if getattr(plain.config, "layer_types", None) else kinds["sliding_attention"]
    with overwritten(plain, values):
        found: Tensor = plain(inputs_embeds=inputs, attention_mask=masks, use_cache=False).logits[0, TOKENS:]
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_windows_are_those_of_the_model(name: str, method: str) -> None:
    """In one pass, and token by token from a cache, in a batch with rows of other lengths and without an adapter."""
    torch.manual_seed(3)
    plain = MODELS[name]().eval()
    torch.manual_seed(3)
    model, tokenizer = MODELS[name]().eval(), toy_tokenizer()
    inject(model, AdapterConfig(**METHODS[method]), "own", seed=0)
    shake(model, "own", size=0.5)
    ids = torch.randint(SIZES["vocab_size"], (4 * WINDOW,), generator=torch.Generator().manual_seed(1)).tolist()
    found = logits(model, torch.tensor([[-1, -2, -3, *ids]]))[0, TOKENS:]  # which makes what a network makes, too
    own = trained(plain, model)
    torch.testing.assert_close(found, expected(plain, *own, ids), atol=1e-4, rtol=0)
    assert (found[:2] - logits(plain, torch.tensor([ids]))[0, :2]).abs().max() > 0.1
    texts = ("hi", "What is the sum of 3 and 4, please?", "Tell me")
    asked, rows = [[Message("user", text)] for text in texts], ["own", None, "own"]
    answers = generate(model, tokenizer, asked, rows, GenerationConfig(max_new_tokens=NEW, temperature=0))
    for conversation, row, answer in zip(asked, rows, answers, strict=True):
        prompt = list(encode_prompt(conversation, tokenizer))
        said: list[int] = []
        while len(said) < NEW and tokenizer.eos_token_id not in said:
            text = [*prompt, *said]
            last = expected(plain, *own, text)[-1] if row else logits(plain, torch.tensor([text]))[0, -1]
            said.append(int(last.argmax()))
        assert answer and tokenizer.decode(said, skip_special_tokens=True).startswith(answer)
        assert len(answer.encode()) > NEW // 2
