"""Several adapters on one model: switching, biases and whole modules, rows, merging, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from core.adapters import (
    adapter_config,
    adapter_names,
    adapter_parameters,
    adapter_rows,
    adapter_state_dict,
    inject,
    load_adapter_state_dict,
    merge,
    remove_adapter,
    set_adapter,
    unmerge,
)
from core.config import AdapterConfig
from core.errors import AdapterError
from core.export.peft import save_adapter
from core.quantize.model import quantize_model
from tests.core.adapters.tiny import bert, gpt2, llama, logits, shake, tokens


def test_the_newest_adapter_is_the_active_and_the_trainable_one() -> None:
    model = llama()
    inject(model, AdapterConfig(r=2), name="one")
    inject(model, AdapterConfig(r=3, target_modules=("q_proj",)), name="two")
    assert adapter_names(model) == ["one", "two"] and adapter_config(model, "two").r == 3
    assert all(p.requires_grad for p in adapter_parameters(model, "two"))
    assert not any(p.requires_grad for p in adapter_parameters(model, "one"))
    assert len(list(adapter_parameters(model))) == 2 * 14 + 2 * 2
    set_adapter(model, "one")
    assert {id(p) for p in model.parameters() if p.requires_grad} == set(map(id, adapter_parameters(model, "one")))
    set_adapter(model, None)
    assert not any(p.requires_grad for p in model.parameters())


def test_switching_there_and_back_is_bit_equal() -> None:
    model, base = llama(), llama()
    for name in ("one", "two"):
        inject(model, AdapterConfig(r=2), name=name)
        shake(model, name, seed=len(name) + ord(name[0]))
    set_adapter(model, "one")
    one = logits(model, tokens())
    set_adapter(model, "two")
    assert not torch.allclose(logits(model, tokens()), one)
    set_adapter(model, None)
    assert torch.equal(logits(model, tokens()), logits(base, tokens()))
    set_adapter(model, "one")
    assert torch.equal(logits(model, tokens()), one)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_trained_biases_belong_to_their_adapter(bias: str) -> None:
    """Unlike peft, where they change the base: with the adapter off the base is exact, and two adapters do not mix."""
    model, base = gpt2().double(), gpt2().double()
    inject(model, AdapterConfig(r=2, target_modules=("c_attn",), bias=bias), name="one")
    inject(model, AdapterConfig(r=2, target_modules=("c_attn",), bias=bias), name="two")
    count = {"lora_only": 2, "all": sum(name.endswith(".bias") for name, _ in base.named_parameters())}[bias]
    assert len(list(adapter_parameters(model, "one"))) == 2 * 2 + count
    assert torch.equal(logits(model, tokens()), logits(base, tokens()))
    shake(model, "one")
    shake(model, "two", seed=3)
    two = logits(model, tokens())
    set_adapter(model, None)
    assert torch.equal(logits(model, tokens()), logits(base, tokens()))
    set_adapter(model, "two")
    assert torch.equal(logits(model, tokens()), two)
    merge(model)
    assert (logits(model, tokens()) - two).abs().max() < 1e-12
    unmerge(model)
    with pytest.raises(AdapterError, match="do not add up"):
        set_adapter(model, ["one", "two"])


def test_modules_to_save_train_whole_in_float32_and_merge() -> None:
    model = bert().to(torch.bfloat16)
    inject(model, AdapterConfig(r=2, target_modules=("query",), modules_to_save=("classifier",)), seed=0)
    whole = [p for p in adapter_parameters(model) if p.shape[0] == 2 and p.ndim < 3 and p.shape != (2, 16)]
    assert whole and all(parameter.dtype == torch.float32 for parameter in adapter_parameters(model))
    loss = model(input_ids=tokens(), labels=torch.tensor([0, 1, 0])).loss
    loss.backward()
    copies = model.classifier.replacement("default").tensors()
    assert set(copies) == {"weight", "bias"} and all(copy.grad.abs().sum() > 0 for copy in copies.values())
    assert model.classifier.base_layer.weight.grad is None
    shake(model)
    expected = logits(model, tokens())
    merge(model)
    assert torch.allclose(logits(model, tokens()), expected, atol=2e-2)
    assert model.classifier.base_layer.weight.dtype == torch.bfloat16


def test_rows_with_whole_modules_and_biases() -> None:
    model = gpt2().double()
    inject(model, AdapterConfig(r=2, target_modules=("c_fc",), modules_to_save=("lm_head",)), name="head")
    inject(model, AdapterConfig(r=2, target_modules=("c_attn",), bias="all"), name="biases")
    shake(model, "head")
    shake(model, "biases", seed=2)
    rows = ["biases", "head", None, "biases"]
    expected = []
    for row, name in enumerate(rows):
        set_adapter(model, name)
        expected.append(logits(model, tokens(4)[row : row + 1]))
    with adapter_rows(model, rows):
        found = logits(model, tokens(4))
    assert torch.allclose(found, torch.cat(expected), atol=1e-12, rtol=0)


def test_gradients_flow_through_rows() -> None:
    model = llama().double()
    inject(model, AdapterConfig(r=2), name="one", seed=1)
    shake(model, "one")
    ids = tokens(4)
    model(input_ids=ids[1:3]).logits.sum().backward()
    expected = [parameter.grad.clone() for parameter in adapter_parameters(model, "one")]
    model.zero_grad()
    with adapter_rows(model, [None, "one", "one", None]):
        model(input_ids=ids).logits.sum().backward()
    found = [parameter.grad for parameter in adapter_parameters(model, "one")]
    assert all(torch.allclose(a, b, atol=1e-10, rtol=0) for a, b in zip(found, expected, strict=True))


def test_rows_refuse_what_they_cannot_do() -> None:
    model = llama()
    inject(model, AdapterConfig(r=2))
    with pytest.raises(AdapterError, match="no adapter 'other'"), adapter_rows(model, ["other"]):
        pass
    with pytest.raises(AdapterError, match="instead of 2"), adapter_rows(model, [None, "default"]):
        model(input_ids=tokens(3))
    assert torch.equal(logits(model, tokens(3)), logits(model, tokens(3)))
    merge(model)
    with pytest.raises(AdapterError, match="is merged"), adapter_rows(model, ["default"]):
        pass


def test_what_is_refused_while_merged() -> None:
    model = llama()
    inject(model, AdapterConfig(r=2))
    merge(model)
    for action in (
        lambda: merge(model),
        lambda: set_adapter(model, None),
        lambda: inject(model, AdapterConfig(r=2), name="other"),
        lambda: remove_adapter(model, "default"),
        lambda: load_adapter_state_dict(model, adapter_state_dict(model)),
    ):
        with pytest.raises(AdapterError, match="unmerge"):
            action()
    unmerge(model)
    unmerge(model)  # twice does no harm
    set_adapter(model, None)
    with pytest.raises(AdapterError, match="nothing to merge"):
        merge(model)
    with pytest.raises(AdapterError, match="no adapter 'x'"):
        merge(model, "x")


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("method", ["lora", "dora", "vera"])
def test_a_merged_adapter_is_saved_as_it_is(make: Any, quantization: str, method: str, tmp_path: Path) -> None:
    """Byte for byte, and so of the same kind of layer, although a quantised one is dense while it is merged."""
    model = make()
    quantize_model(model, quantization)
    inject(model, AdapterConfig(method=method, r=2, bias="all" if method == "lora" else "none"), seed=0)
    shake(model, size=0.1)
    save_adapter(model, tmp_path / "before")
    merge(model)
    save_adapter(model, tmp_path / "merged")
    files = {path.name: path.read_bytes() for path in (tmp_path / "before").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()}


def test_a_hundred_merges_leave_a_bf16_base_bit_for_bit() -> None:
    model = llama().to(torch.bfloat16)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    inject(model, AdapterConfig(r=2))
    shake(model, size=0.3)
    for _ in range(100):
        merge(model)
        unmerge(model)
    set_adapter(model, None)
    remove_adapter(model, "default")
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_state_that_does_not_fit_is_refused_with_the_differences() -> None:
    model = llama()
    inject(model, AdapterConfig(r=2, target_modules=("q_proj",)))
    state = adapter_state_dict(model)
    before = {key: value.clone() for key, value in state.items()}
    first, second = list(state)[:2]
    bad = {**{key: value + 1 for key, value in state.items() if key != first}, "extra": torch.zeros(1)}
    bad[second] = torch.zeros(3, 3)
    with pytest.raises(AdapterError) as caught:
        load_adapter_state_dict(model, bad)
    for words in ("1 missing", "1 not of this adapter (extra)", "(3, 3) instead of"):
        assert words in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in adapter_state_dict(model).items())


def test_a_copied_model_has_adapters_of_its_own() -> None:
    model = llama()
    inject(model, AdapterConfig(r=2))
    twin = copy.deepcopy(model)
    shake(twin)
    set_adapter(twin, None)
    set_adapter(twin, "default")
    assert not torch.allclose(logits(twin, tokens()), logits(model, tokens()))
    merge(twin)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "AdaptedModule"
    assert not model.model.layers[0].mlp.up_proj.originals


def test_wrapped_layers_answer_for_the_original() -> None:
    model = llama()
    inject(model, AdapterConfig(r=2, modules_to_save=("lm_head",)))
    layer = model.model.layers[0].mlp.up_proj
    assert layer.in_features == 16 and layer.weight is layer.base_layer.weight
    assert model.lm_head.weight is model.lm_head.replacement("default").tensors()["weight"]
    with pytest.raises(AttributeError):
        _ = layer.nothing_of_the_kind


def test_core_names() -> None:
    """`core.merge` stays the function, also after the file of that name was imported."""
    import importlib
    import subprocess
    import sys

    import core

    importlib.import_module("core.merge")
    assert core.merge is merge and "merge_to_folder" in dir(core)
    with pytest.raises(AttributeError):
        _ = core.nothing_of_the_kind
    code = "import core, sys; raise SystemExit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
