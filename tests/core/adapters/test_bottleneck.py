"""Bottleneck adapters: the formula, where they go, counts, and that they refuse to be merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from core.adapters import adapter_parameters, inject, merge
from core.config import AdapterConfig
from core.errors import AdapterError
from core.export.peft import load_adapter, save_adapter
from core.merge import merge_to_folder
from core.methods import methods
from core.models import inspect_model
from tests.core.adapters.tiny import bert, gpt2, llama, logits, shake, tokens


def test_formula_and_gradients_against_plain_modules() -> None:
    model = nn.Sequential(nn.Linear(5, 7)).double()
    config = AdapterConfig(method="adapter", target_modules=("0",), method_options={"width": 3})
    inject(model, config, seed=1)
    shake(model, size=0.5)
    own: Any = model[0]
    adapter = own.adapter("default")
    down, up = nn.Linear(7, 3).double(), nn.Linear(3, 7).double()
    with torch.no_grad():
        pairs = ((down, adapter.down, adapter.down_bias), (up, adapter.up, adapter.up_bias))
        for layer, weight, bias in pairs:
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    x = torch.randn(4, 5, dtype=torch.float64)
    h = own.base_layer(x)
    expected = h + up(torch.nn.functional.gelu(down(h)))
    torch.testing.assert_close(model(x), expected, atol=1e-12, rtol=0)
    model(x).square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(adapter.down.grad, down.weight.grad, atol=1e-10, rtol=0)
    torch.testing.assert_close(adapter.up_bias.grad, up.bias.grad, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("make", "endings"),
    [
        (llama, {"self_attn.o_proj", "mlp.down_proj"}),
        (gpt2, {"attn.c_proj", "mlp.c_proj"}),
        (bert, {"attention.output.dense", "0.output.dense"}),
    ],
)
def test_one_after_attention_and_one_after_feed_forward(make: Any, endings: set[str]) -> None:
    model = make()
    paths = inject(model, AdapterConfig(method="adapter"), seed=1)
    blocks = len({path.split(".layer")[1].split(".")[1] if ".layer" in path else path.split(".")[2] for path in paths})
    assert len(paths) == 2 * blocks
    assert all(any(path.endswith(ending) for ending in endings) for path in paths)


SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40,
}  # fmt: skip
OLDER: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 40}
FAMILIES: dict[str, tuple[dict[str, Any], str, str]] = {  # settings, and the ends of both blocks
    "GPTNeoXForCausalLM": (SIZES, "attention.dense", "mlp.dense_4h_to_h"),
    "BloomForCausalLM": ({**OLDER, "hidden_size": 16}, "self_attention.dense", "mlp.dense_4h_to_h"),
    "FalconForCausalLM": (SIZES, "self_attention.dense", "mlp.dense_4h_to_h"),
    "GPTJForCausalLM": ({**OLDER, "rotary_dim": 2}, "attn.out_proj", "mlp.fc_out"),
    "PhiForCausalLM": (SIZES, "self_attn.dense", "mlp.fc2"),
    "DistilBertForMaskedLM": (
        {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "vocab_size": 40}, "attention.out_lin", "ffn.lin2",
    ),
    "ModernBertForMaskedLM": ({**SIZES, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}, "attn.Wo", "mlp.Wo"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_the_ends_of_the_blocks_are_known_by_the_names_of_each_family(name: str, tmp_path: Path) -> None:
    settings, attention, feed_forward = FAMILIES[name]
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**settings)).eval()
    model.save_pretrained(tmp_path)
    config = AdapterConfig(method="adapter", method_options={"width": 6})
    paths = inject(model, config, seed=1)
    ends = [next(end for end in (attention, feed_forward) if path.endswith(f".{end}")) for path in paths]
    assert sorted(ends) == sorted([attention, feed_forward] * 2)
    counted = methods.get("adapter").trainable_parameters(inspect_model(tmp_path), config)
    assert counted == sum(parameter.numel() for parameter in adapter_parameters(model))
    before = logits(model, tokens())
    shake(model, size=0.5)
    assert (logits(model, tokens()) - before).abs().max() > 1e-3


def test_counts_of_the_paper_and_of_the_files(tmp_path: Path) -> None:
    """L (2 d m + m + d), for L adapters of width m on a model of width d."""
    model = llama()
    model.save_pretrained(tmp_path)
    config = AdapterConfig(method="adapter", method_options={"width": 6})
    inject(model, config, seed=1)
    trained = sum(parameter.numel() for parameter in adapter_parameters(model))
    assert trained == 4 * (2 * 16 * 6 + 6 + 16)
    assert methods.get("adapter").trainable_parameters(inspect_model(tmp_path), config) == trained


def test_start_of_the_paper_is_near_the_base_and_norms_train_when_asked() -> None:
    model = llama()
    options = {"exact_start": False, "norms": True, "width": 4}
    inject(model, AdapterConfig(method="adapter", method_options=options), seed=1)
    difference = (logits(model, tokens()) - logits(llama(), tokens())).abs().max()
    assert 0 < difference < 1e-3
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum("layernorm" in name or "norm.replacements" in name for name in trained) == 2 * 2 + 1


def test_cannot_be_merged(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path / "base")
    inject(model, AdapterConfig(method="adapter"), seed=1)
    shake(model)
    with pytest.raises(AdapterError, match="cannot be merged"):
        merge(model)
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="cannot be merged"):
        merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    loaded = llama()
    load_adapter(loaded, tmp_path / "adapter")
    assert torch.equal(logits(loaded, tokens()), logits(model, tokens()))
