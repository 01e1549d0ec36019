"""Packed rows against their single rows on real architectures, in float64, and the models that must not be packed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from core import packed_attention
from core.adapters import adapter_parameters, inject
from core.config import AdapterConfig, TrainConfig
from core.data.packing import Shape, pack, shared_prefix
from core.data.tokenized import TokenizedExample
from core.micro_batches import drops_at_random
from core.tasks.completion import Completion

VOCABULARY = 97
SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY, "max_position_embeddings": 128,
    "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
WINDOW = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
GPT2 = GPT2Config(
    n_layer=2, n_embd=32, n_head=2, vocab_size=VOCABULARY, n_positions=128, initializer_range=0.2,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
PACKABLE = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, **WINDOW)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, **WINDOW)),
}
FLOAT32_INSIDE = {"gemma2": 1e-6}  # transformers' softmax of capped scores
REFUSED = {
    "it looks ahead": (lambda: BertLMHeadModel(_bert()), "looks ahead"),
    "its attention is its own": (lambda: BloomForCausalLM(_bloom()), "cannot be replaced"),
    "it carries a state": (lambda: Lfm2ForCausalLM(_lfm2()), "numbers of its single rows"),
}


def _bert() -> BertConfig:
    return BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCABULARY
    )


def _bloom() -> BloomConfig:
    return BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=VOCABULARY)


def _lfm2() -> Lfm2Config:
    layers = {name: value for name, value in SMALL.items() if name != "head_dim"}
    return Lfm2Config(**layers, layer_types=["conv", "full_attention"])


def adapted(make: Any) -> Any:
    """A float64 model in training mode with a LoRA whose B is not 0."""
    torch.manual_seed(0)
    model = make().double().requires_grad_(False)
    inject(model, AdapterConfig(r=4), seed=0)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.train()


def rows() -> list[TokenizedExample]:
    """Ragged, two of one length, all with the same first tokens; most are longer than the window."""
    draw = torch.Generator().manual_seed(1)
    start = torch.randint(VOCABULARY, (4,), generator=draw).tolist()
    made = []
    for row, length in enumerate((5, 14, 9, 9, 3)):
        ids = (*start, *torch.randint(VOCABULARY, (length,), generator=draw).tolist())
        made.append(TokenizedExample(ids, (False,) * 5 + (True,) * (len(ids) - 5), row))
    return made


def loss_and_gradients(task: Completion, model: Any, batches: list[Any]) -> list[Tensor]:
    parameters = list(adapter_parameters(model))
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        with task.computing(model, batch):
            loss = task.loss_sum(model, batch)
            loss.backward()
        total += loss.detach()
    found = [total, *(parameter.grad for parameter in parameters if parameter.grad is not None)]
    assert len(found) == 1 + len(parameters)
    model.zero_grad()
    return found


def worst(found: list[Tensor], wanted: list[Tensor]) -> float:
    return max(float((one - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", PACKABLE)
def test_loss_and_gradients_are_those_of_the_single_rows(name: str) -> None:
    model, task, examples = adapted(PACKABLE[name]), Completion(), rows()
    task.bind(model, TrainConfig())
    assert task.why_not_packed(model, longest=64) == ""
    alone = loss_and_gradients(task, model, [task.collate([example], 0) for example in examples])
    assert worst(loss_and_gradients(task, model, [pack(examples, 0)]), alone) < FLOAT32_INSIDE.get(name, 1e-12)
    filled = pack(examples, 0, Shape(multiple=64, trained_multiple=16, segments_multiple=8, longest=40))
    assert worst(loss_and_gradients(task, model, [filled]), alone) < FLOAT32_INSIDE.get(name, 1e-12)
    once = pack(examples, 0, prefix=shared_prefix(examples))
    assert once.layout.prefix == 4
    tolerance = 1e-12 if name == "gpt2" else 1e-6  # RMSNorm rounds gradients to float32, before they are summed here
    assert worst(loss_and_gradients(task, model, [once]), alone) < tolerance


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_packed_exactly_say_why(name: str) -> None:
    make, reason = REFUSED[name]
    torch.manual_seed(0)
    model = make()
    task = Completion()
    task.bind(model, TrainConfig())
    assert reason in task.why_not_packed(model, longest=64)
    assert model.config._attn_implementation != packed_attention.NAME


def test_a_leak_between_rows_or_out_of_the_window_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial is what stands between a wrong attention and a spoilt run, so it must see one."""
    task, model = Completion(), adapted(PACKABLE["gemma3"])
    task.bind(model, TrainConfig())
    own = packed_attention._causal

    def windowless(q: Tensor, k: Tensor, v: Tensor, settings: Any) -> Tensor:
        return own(q, k, v, packed_attention._Settings(settings.scaling, 0, settings.dropout, settings.softcap))

    def leaking(q: Tensor, k: Tensor, v: Tensor, layout: Any, settings: Any) -> Tensor:
        return own(q, k, v, settings).transpose(1, 2)

    for name, wrong in (("_causal", windowless), ("_by_example", leaking)):
        with monkeypatch.context() as patched:
            patched.setattr(packed_attention, name, wrong)
            assert "single rows" in task.why_not_packed(model, longest=64)
    assert task.why_not_packed(model, longest=64) == ""


def deep_bfloat16() -> Any:
    """Its roundings grow over 24 layers to a twentieth of its hidden states, as those of real models do."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, "num_hidden_layers": 24})).bfloat16()


def test_bfloat16_roundings_are_not_taken_for_a_leak_and_a_leak_not_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = Completion(), deep_bfloat16()
    task.bind(model, TrainConfig())
    assert task.why_not_packed(model, longest=64) == ""
    own = packed_attention._causal
    monkeypatch.setattr(
        packed_attention, "_by_example", lambda q, k, v, layout, settings: own(q, k, v, settings).transpose(1, 2)
    )
    assert "single rows" in task.why_not_packed(model, longest=64)


def test_dropout_of_the_model_is_seen() -> None:
    assert not drops_at_random(LlamaForCausalLM(LlamaConfig(**SMALL)))
    assert drops_at_random(LlamaForCausalLM(LlamaConfig(**SMALL, attention_dropout=0.1)))
    assert drops_at_random(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=VOCABULARY)))
