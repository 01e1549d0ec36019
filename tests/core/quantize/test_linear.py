"""Quantised layers in a model: gradients, what autograd keeps, and adapters beside them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from core.adapters import adapter_parameters, inject, merge, names, set_adapter, unmerge
from core.adapters.base import layer_kind, layer_size, weight_value
from core.config import AdapterConfig
from core.errors import ConfigError
from core.methods import methods
from core.methods.method import BASELINE
from core.optim import make_optimizer, optimizer_parameters
from core.prompt import virtual_ids
from core.quantize.linear import LAYERS, NF4Linear, QuantizedLinear
from core.quantize.model import quantization_of, quantize_model, round_model
from tests.core.adapters.tiny import gpt2, llama, logits, shake, tokens
from tests.core.toy import toy_config, toy_llama, toy_trainer

KINDS = pytest.mark.parametrize("kind", LAYERS)
FAMILIES = pytest.mark.parametrize("make", [llama, gpt2])


def quantized(make: Callable[[], Any], kind: str, dtype: torch.dtype = torch.float32) -> Any:
    model = make().to(dtype)
    quantize_model(model, kind)
    return model


def layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


@KINDS
@pytest.mark.parametrize("make", [lambda: nn.Linear(40, 24), lambda: Conv1D(24, 40), lambda: nn.Linear(40, 24, False)])
def test_output_and_gradient_are_those_of_the_dense_formula(kind: str, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    dense = make().double()
    layer = LAYERS[kind].from_layer(dense)
    assert layer_size(layer) == (40, 24) and layer.dtype == torch.float64
    weight = layer.dequantize(torch.float64)
    x = torch.randn(2, 5, 40, dtype=torch.float64, requires_grad=True)
    out, seed = layer(x), torch.randn(2, 5, 24, dtype=torch.float64)
    bias = getattr(dense, "bias", None)
    expected = x @ weight.T + (0 if bias is None else bias.detach())
    (found,) = torch.autograd.grad(out, x, seed)
    (wanted,) = torch.autograd.grad(expected, x, seed)
    assert (out - expected).abs().max() < 1e-12 and (found - wanted).abs().max() < 1e-12
    assert torch.autograd.gradcheck(layer, (x,))


@KINDS
def test_autograd_keeps_nothing_of_a_product(kind: str) -> None:
    layer = LAYERS[kind].from_layer(nn.Linear(64, 48))
    x = torch.randn(7, 64, requires_grad=True)
    assert kept(lambda: layer(x)) == 0 and kept(lambda: nn.functional.linear(x, torch.ones(48, 64))) > 0


def kept(run: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of what `run` computes."""
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(sizes)


@KINDS
@FAMILIES
def test_all_linear_layers_but_the_output_are_quantised(kind: str, make: Callable[[], Any]) -> None:
    model = quantized(make, kind)
    dense = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    assert dense == ["lm_head"] and len(layers(model)) == (14 if make is llama else 8)
    assert quantization_of(model) == kind and quantization_of(make()) == "none"
    assert all(layer_kind(layer) == ("linear" if make is llama else "conv1d") for layer in layers(model).values())
    twin = make()
    round_model(twin, kind)
    assert torch.equal(logits(model, tokens()), logits(twin, tokens())) or make is gpt2
    assert (logits(model, tokens()) - logits(twin, tokens())).abs().max() < 1e-6


@KINDS
@FAMILIES
def test_only_the_adapter_trains_and_its_gradient_is_right(kind: str, make: Callable[[], Any]) -> None:
    """Against the same adapter on a dense model with the same weights, by plain autograd in float64."""
    model, twin = quantized(make, kind, torch.float64), make().double()
    round_model(twin, kind)
    for each in (model, twin):
        inject(each, AdapterConfig(r=4, lora_alpha=8.0), seed=3)
        shake(each)
        each(input_ids=tokens(), labels=tokens()).loss.backward()
    ours, theirs = dict(model.named_parameters()), dict(twin.named_parameters())
    trained = {name for name, parameter in ours.items() if parameter.requires_grad}
    assert trained == {name for name, parameter in theirs.items() if parameter.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert {id(p) for p in optimizer_parameters(make_optimizer(model, toy_config().optim))} == {
        id(ours[name]) for name in trained
    }
    for name in trained:
        found, wanted = ours[name].grad, theirs[name].grad
        assert found is not None and wanted is not None
        assert float((found - wanted).norm() / wanted.norm()) < 1e-6, name
    assert all(parameter.grad is None for name, parameter in ours.items() if name not in trained)


@KINDS
@FAMILIES
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_merged_is_unmerged(kind: str, make: Callable[[], Any], dtype: torch.dtype, tolerance: float) -> None:
    model = quantized(make, kind, dtype)
    inject(model, AdapterConfig(r=4, lora_alpha=8.0, bias="all" if make is gpt2 else "none"), seed=1)
    shake(model)
    packed = layers(model)
    expected = logits(model, tokens())
    merge(model)
    assert (logits(model, tokens()) - expected).abs().max() <= tolerance
    assert all(isinstance(host.base_layer, nn.Linear) for host in hosts(model) if host.adapters)
    unmerge(model)
    assert layers(model) == packed and torch.equal(logits(model, tokens()), expected)
    set_adapter(model, None)
    assert torch.equal(logits(model, tokens()), logits(quantized(make, kind, dtype), tokens()))


def hosts(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "base_layer")]


@KINDS
def test_adapters_are_float32_on_the_layers_device(kind: str) -> None:
    model = quantized(llama, kind, torch.bfloat16)
    inject(model, AdapterConfig(r=2))
    assert {p.dtype for p in adapter_parameters(model)} == {torch.float32}
    assert logits(model, tokens()).dtype == torch.bfloat16


def test_a_quantised_weight_cannot_train_whole() -> None:
    model = quantized(llama, "nf4")
    with pytest.raises(ConfigError, match="quantised"):
        inject(model, AdapterConfig(target_modules=("q_proj",), modules_to_save=("down_proj",)))
    with pytest.raises(ConfigError, match="quantised"):
        inject(model, AdapterConfig(target_modules=("q_proj",), modules_to_save=("layers.0.mlp",)))
    assert inject(model, AdapterConfig(target_modules=("q_proj",), modules_to_save=("lm_head",)))


@FAMILIES
@pytest.mark.parametrize("method", names())
def test_every_method_trains_and_merges_on_a_quantised_base_or_says_why_not(
    method: str, make: Callable[[], Any]
) -> None:
    model = quantized(make, "nf4")
    about = methods.get(method)
    settings = {key: value for key, value in {"r": 4, "lora_alpha": 8.0}.items() if key in about.uses}
    try:
        inject(model, AdapterConfig(method=method, **settings), seed=1)
    except ConfigError as error:
        assert about.group == BASELINE and ("quantised" in error.what or "biases" in error.what)
        return
    shake(model)
    ids = torch.cat([torch.tensor(virtual_ids(model)).long().expand(len(tokens()), -1), tokens()], dim=1)
    expected = logits(model, ids)
    model(input_ids=ids, labels=ids.clamp(min=0)).loss.backward()
    assert any(parameter.grad is not None for parameter in adapter_parameters(model))
    if about.merges:
        merge(model)
        assert (logits(model, ids) - expected).abs().max() <= 1e-5
        unmerge(model)
        assert torch.equal(logits(model, ids), expected)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="fp4"):
        quantize_model(llama(), "fp4")


def test_a_copy_is_a_copy() -> None:
    layer = NF4Linear(torch.randn(8, 64))
    assert torch.equal(copy.deepcopy(layer).dequantize(torch.float32), weight_value(layer))


@KINDS
def test_training_on_a_quantised_base_learns(kind: str) -> None:
    model = toy_llama()
    quantize_model(model, kind)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    losses = [step.loss for step in toy_trainer(toy_config(epochs=8.0), model=model).steps()]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    after = {name.replace(".base_layer", ""): buffer for name, buffer in model.named_buffers()}
    assert all(torch.equal(after[name], buffer) for name, buffer in before.items())
