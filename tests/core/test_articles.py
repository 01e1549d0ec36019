"""The articles' calls, used as their readers would, with what the articles promise checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.adapters import adapter_names, adapter_parameters, set_adapter
from core.articles import (
    ChatLoRA,
    LinearLoRA,
    LoRAAttention,
    LoraConfig,
    LoRALayer,
    LoRAModel,
    TextClassificationLoRA,
    get_lora_state_dict,
    inject_lora,
    set_lora_state_dict,
)
from core.config import AdapterConfig
from core.data.batching import collate
from core.data.records import Message, Record
from core.data.template import tokenize_all
from core.errors import AdapterError, ConfigError
from core.loss import loss_sum
from tests.core.adapters.tiny import bert, gpt2, llama, logits, shake, tokens
from tests.core.test_classification import RECORDS, toy_bert
from tests.core.toy import toy_llama, toy_tokenizer


def test_linear_lora_is_the_layer_plus_a_scaled_product() -> None:
    layer = LinearLoRA(64, 64, rank=4, alpha=8).double()
    x = torch.randn(2, 8, 64, dtype=torch.float64)
    inner: Any = layer.linear
    assert layer(x).shape == (2, 8, 64) and torch.equal(layer(x), inner.base_layer(x))
    shake(layer, size=0.5)
    adapter = inner.adapter("default")
    expected = inner.base_layer(x) + 2.0 * x @ adapter.lora_A.T @ adapter.lora_B.T
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)
    assert {name.split(".")[-1] for name, p in layer.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_first_article_counts() -> None:
    layer = LinearLoRA(1000, 1000, rank=2, bias=False)
    trained = sum(parameter.numel() for parameter in adapter_parameters(layer))
    assert (trained, 1000 * 1000 // trained) == (4000, 250)


def test_layer_keeps_the_bias_it_has() -> None:
    inner: Any = LoRALayer(6, 5, r=2, bias=True).linear
    assert isinstance(inner.base_layer.bias, nn.Parameter) and not inner.base_layer.bias.requires_grad
    bare: Any = LoRALayer(6, 5, r=2, bias=False).linear
    assert bare.base_layer.bias is None


def test_attention_starts_as_plain_attention_and_needs_whole_heads() -> None:
    attention = LoRAAttention(16, 4).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    q, k, v = (part(x).view(2, 5, 4, 4).transpose(1, 2) for part in (attention.q, attention.k, attention.v))
    weights = torch.softmax(q @ k.transpose(-1, -2) / 2.0, dim=-1)
    expected = attention.out((weights @ v).transpose(1, 2).reshape(2, 5, 16))
    torch.testing.assert_close(attention(x), expected, atol=1e-12, rtol=0)
    with pytest.raises(ConfigError, match="heads"):
        LoRAAttention(10, 4)


def test_model_trains_the_adapter_only_and_finds_conv1d() -> None:
    model = LoRAModel(gpt2(), r=4)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_A" in name or ".lora_B" in name for name in trained)
    assert any("c_attn" in name for name in trained)
    base = gpt2()
    assert torch.equal(logits(model.model, tokens()), logits(base, tokens()))


def test_both_orders_of_add_adapter() -> None:
    model = LoRAModel(llama(), r=2)
    config = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    assert config == AdapterConfig(r=4, lora_alpha=32.0, target_modules=("q_proj", "v_proj"), lora_dropout=0.1)
    model.add_adapter(config, "second")
    model.add_adapter("third", config=config)
    assert adapter_names(model.model) == ["default", "second", "third"]
    with pytest.raises(ConfigError, match="no config"):
        model.add_adapter("fourth")


def test_switching_tasks_and_back_is_bit_equal(tmp_path: Path) -> None:
    model = LoRAModel(llama(), r=2)
    shake(model.model, seed=1)
    task_a = get_lora_state_dict(model)
    on_a = logits(model.model, tokens())
    shake(model.model, seed=2)
    task_b = get_lora_state_dict(model)
    assert not torch.equal(on_a, logits(model.model, tokens()))
    inject_lora(model, task_a, "a")
    model.inject_lora(task_b, "b")
    inject_lora(model, task_a, "a")
    assert torch.equal(logits(model.model, tokens()), on_a)
    set_adapter(model.model, "a")
    folder = model.save_pretrained(tmp_path / "a")
    inject_lora(model, folder, "from_file")
    assert torch.equal(logits(model.model, tokens()), on_a)


def test_state_dicts_are_copies_and_strict() -> None:
    model = LoRAModel(llama(), r=2)
    state = get_lora_state_dict(model)
    before = {key: value.clone() for key, value in state.items()}
    shake(model.model)
    assert all(torch.equal(state[key], before[key]) for key in state)
    set_lora_state_dict(model, state)
    assert all(torch.equal(value, before[key]) for key, value in get_lora_state_dict(model).items())
    with pytest.raises(AdapterError, match="missing"):
        set_lora_state_dict(model, {})
    with pytest.raises(AdapterError, match="do not fit"):
        inject_lora(model, {"wrong": torch.zeros(1)}, "broken")
    assert adapter_names(model.model) == ["default"]
    with pytest.raises(AdapterError, match="no adapter"):
        inject_lora(bert(), state)


def test_text_classification(tmp_path: Path) -> None:
    toy_bert().save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    classifier = TextClassificationLoRA(tmp_path, num_labels=2, r=8, device="cpu")
    texts = [record.messages[0].content for record in RECORDS]
    labels = [int(record.messages[1].content == "good") for record in RECORDS]
    assert len(classifier.prepare_data(texts, labels)) == len(RECORDS)
    losses = classifier.train(epochs=60, batch_size=8, learning_rate=5e-3)
    assert losses["last_loss"] < 0.5 * losses["first_loss"]
    assert classifier.evaluate(texts, labels)["accuracy"] >= 0.9
    with pytest.raises(ConfigError, match="labels"):
        classifier.prepare_data(texts, labels[:3])


def test_chat_learns_three_dialogues_by_heart(tmp_path: Path) -> None:
    """The practice article's own example: a handful of dialogues, learned until the loss is below 0.1."""
    dialogues = [["Hi", "Hello"], ["Who are you", "A toy"], ["Bye", "See you"]]
    pretrained([[question, dialogues[row - 1][1]] for row, (question, _) in enumerate(dialogues)]).save_pretrained(
        tmp_path
    )
    toy_tokenizer().save_pretrained(tmp_path)
    chat = ChatLoRA(tmp_path, r=8, device="cpu")
    assert chat.generate_response("Hi", max_new_tokens=8, temperature=0.0).strip() == "See you"
    chat.create_conversation_dataset(dialogues)
    assert chat.fine_tune(epochs=100, batch_size=4, learning_rate=5e-3)["last_loss"] < 0.1
    assert chat.generate_response("Hi", max_new_tokens=8, temperature=0.0).strip() == "Hello"


def pretrained(dialogues: list[list[str]]) -> Any:
    """A toy model that knows the words, in other answers: plain training of every weight."""
    model = toy_llama().train().requires_grad_(True)
    records = [Record(row, (Message("user", q), Message("assistant", a))) for row, (q, a) in enumerate(dialogues, 1)]
    batch = collate(tokenize_all(records, toy_tokenizer()), 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss_sum(model, None, batch.input_ids, batch.labels).backward()
        optimizer.step()
    return model.eval()
