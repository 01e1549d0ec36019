"""Reading what a model is from its files, and refusing what is unsafe to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from core.errors import ModelError
from core.model_config import read_config
from core.models import inspect_model, load_model

LLAMA = LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    tie_word_embeddings=False,
)
GPT2 = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=64)
QWEN3 = Qwen3Config(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    tie_word_embeddings=True,
)


def save(config: Any, folder: Path, **options: Any) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize("config", [LLAMA, GPT2, QWEN3], ids=lambda c: c.model_type)
def test_facts_equal_those_of_the_loaded_model(config: Any, tmp_path: Path) -> None:
    model = save(config, tmp_path, max_shard_size="8KB")
    info = inspect_model(tmp_path)
    assert info.parameters == sum(p.numel() for p in model.parameters())
    assert (
        info.layers == config.num_hidden_layers and info.hidden_size == 16 and info.heads == config.num_attention_heads
    )
    assert info.dtype == "float32" and info.tied_embeddings == bool(config.tie_word_embeddings)
    real = {
        name: module.weight.shape
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None
    }
    for target in info.linear_targets():
        of_that_name = [shape for name, shape in real.items() if name.rpartition(".")[2] == target.name]
        flipped = config.model_type == "gpt2"
        assert list(target.shapes) == [(s[0], s[1]) if flipped else (s[1], s[0]) for s in of_that_name]


def test_linear_targets_are_the_linear_layers_but_the_head(tmp_path: Path) -> None:
    model = save(LLAMA, tmp_path)
    linear = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {
        "lm_head"
    }
    assert {target.name for target in inspect_model(tmp_path).linear_targets()} == linear


def test_groups(tmp_path: Path) -> None:
    save(LLAMA, tmp_path)
    groups = {target.name: target.group for target in inspect_model(tmp_path).targets}
    assert groups["q_proj"] == "attention" and groups["down_proj"] == "mlp"
    assert groups["embed_tokens"] == "embedding" and groups["lm_head"] == "output"


def test_lora_count_formula(tmp_path: Path) -> None:
    save(LLAMA, tmp_path)
    q = next(target for target in inspect_model(tmp_path).targets if target.name == "q_proj")
    assert q.count == 3 and q.lora_parameters(8) == 3 * 8 * (16 + 16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "own Python code"),
        ({"text_config": {"auto_map": {}}}, "own Python code"),
        ({"_attn_implementation_internal": "someone/kernel"}, "own Python code"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantised"),
    ],
)
def test_unsafe_configs_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    save(LLAMA, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    for read in (read_config, load_model):
        with pytest.raises(ModelError, match=words) as caught:
            read(tmp_path)
        assert caught.value.fix


def test_pickle_weights_are_refused(tmp_path: Path) -> None:
    save(LLAMA, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickle weights"):
        inspect_model(tmp_path)


@pytest.mark.parametrize(
    "damage", [b"", b"\xff" * 8, b"\x10\0\0\0\0\0\0\0not json at all!", (2**40).to_bytes(8, "little")]
)
def test_damaged_weights_are_refused(damage: bytes, tmp_path: Path) -> None:
    save(LLAMA, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(damage)
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        inspect_model(tmp_path)


def test_index_cannot_point_outside(tmp_path: Path) -> None:
    save(LLAMA, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(ModelError, match="lacks the weight file"):
        inspect_model(tmp_path)


def test_missing_model_says_what_to_do(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(ModelError) as caught:
            inspect_model(folder)
        assert caught.value.fix


def test_load_model_is_frozen_and_in_eval_mode(starter_folder: Path) -> None:
    model, tokenizer = load_model(starter_folder, dtype="float32", device="cpu")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert tokenizer.pad_token_id is not None
    info = inspect_model(starter_folder)
    assert info.parameters == sum(p.numel() for p in model.parameters()) and info.has_chat_template
