"""What every adapter method must hold to, over the registry: a new method is tested by being registered."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from core.adapters import (
    adapter_parameters,
    adapter_rows,
    adapter_state_dict,
    adapters,
    inject,
    load_adapter_state_dict,
    merge,
    names,
    remove_adapter,
    set_adapter,
    unmerge,
)
from core.adapters.base import ALL_ROWS, layer_kind
from core.config import AdapterConfig
from core.methods import methods
from core.prompt import virtual_ids
from tests.core.adapters.tiny import gpt2, llama, logits, shake, tokens

METHODS = names()
LAYERED = [method for method in METHODS if methods.get(method).uses >= {"target_modules"}]
FAMILIES = {"linear": partial(llama, attention_bias=True, mlp_bias=True), "conv1d": gpt2}
EMBEDDING = {"linear": "embed_tokens", "conv1d": "wte"}
EVERY = pytest.mark.parametrize("method", METHODS)
MERGING = pytest.mark.parametrize("method", [method for method in METHODS if methods.get(method).merges])
ADDING = pytest.mark.parametrize(
    "method", [method for method in LAYERED if methods.get(method).merges and adapters.get(method).is_additive]
)
DENSE = pytest.mark.parametrize("method", [method for method in LAYERED if methods.get(method).merges])


def adapted(method: str, family: str, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    model = FAMILIES[family]().to(dtype)
    inject(model, config(method, **{"r": 4, "lora_alpha": 8.0, **settings}), seed=1)
    return model


def config(method: str, **settings: Any) -> AdapterConfig:
    """The settings that the method has a use for."""
    used = {key: value for key, value in settings.items() if key in methods.get(method).uses}
    return AdapterConfig(method=method, **used)


def texts(model: Any, rows: int = 3) -> Tensor:
    """Token ids, (rows, length), after the virtual tokens of the active adapter."""
    return torch.cat([torch.tensor(virtual_ids(model)).long().expand(rows, -1), tokens(rows)], dim=1)


def loss(model: Any) -> Tensor:
    """The model's own loss on the texts."""
    ids = texts(model)
    found: Tensor = model(input_ids=ids, labels=ids.masked_fill(ids < 0, -100)).loss
    return found


@EVERY
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_is_exactly_the_base_at_the_start(method: str, family: str, dtype: torch.dtype) -> None:
    base = FAMILIES[family]().to(dtype)
    expected = logits(base, tokens())
    found = logits(adapted(method, family, dtype), tokens())
    assert not adapters.get(method).exact_at_start or torch.equal(found, expected)


@EVERY
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_adapter_is_trained_and_all_of_it(method: str, family: str) -> None:
    model = adapted(method, family)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = set(map(id, adapter_parameters(model)))
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(list(adapter_parameters(model)), lr=0.1)
    seen: set[int] = set()
    for step in range(2):
        optimizer.zero_grad()
        loss(model).backward()
        moved = [p for p in adapter_parameters(model) if p.grad is not None and p.grad.abs().sum() > 0]
        assert moved, f"no gradient in step {step}"
        seen |= set(map(id, moved))
        optimizer.step()
    assert seen == trained
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    names = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    assert changed == {name for name, own in names.items() if own in trained}


@MERGING
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("with_embedding", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_merged_is_unmerged(
    method: str, family: str, with_embedding: bool, dtype: torch.dtype, tolerance: float
) -> None:
    if with_embedding and "embedding" not in methods.get(method).layers:
        pytest.skip(f"{method} does not adapt an embedding")
    targets = ("c_attn", "c_proj") if family == "conv1d" else ("q_proj", "down_proj")
    model = adapted(method, family, dtype, target_modules=(*targets, *([EMBEDDING[family]] if with_embedding else [])))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    base = FAMILIES[family]().to(dtype)
    shake(model, size=0.2)
    expected = logits(model, tokens())
    assert (expected - logits(base, tokens())).abs().max() > 1e-3, "the adapter does nothing, so the test shows nothing"
    merge(model)
    assert (logits(model, tokens()) - expected).abs().max() <= tolerance
    unmerge(model)
    assert torch.equal(logits(model, tokens()), expected)
    trained = {name for name, own in model.named_parameters(remove_duplicate=False) if own.requires_grad}
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items() if key not in trained)


@DENSE
@pytest.mark.parametrize("base", [nn.Linear(8, 6), Conv1D(6, 8), nn.Embedding(8, 6)], ids=["linear", "conv1d", "embed"])
def test_delta_weight_is_what_the_output_shows(method: str, base: nn.Module) -> None:
    """The dense delta, read off the forward pass with unit vectors, in the layout of the weight."""
    if layer_kind(base) not in methods.get(method).layers:
        pytest.skip(f"{method} does not adapt a {type(base).__name__}")
    model = nn.Sequential(copy.deepcopy(base).double()).eval()
    inject(model, config(method, r=3, target_modules=("0",)), seed=3)
    shake(model, size=0.5)
    unit: Tensor = torch.arange(8) if isinstance(base, nn.Embedding) else torch.eye(8, dtype=torch.float64)
    on = model(unit)
    set_adapter(model, None)
    seen = (on - model(unit)).detach()  # (in, out)
    adapter = model[0].adapter("default")
    expected = seen.T if isinstance(base, nn.Linear) else seen
    weight = base.weight.detach().double()
    assert torch.allclose(adapter.merge_block(weight, ALL_ROWS) - weight, expected, atol=1e-12, rtol=0)
    if adapter.is_blockwise:
        some = adapter.merge_block(weight[1:3], slice(1, 3)) - weight[1:3]
        assert torch.allclose(some, expected[1:3], atol=1e-12, rtol=0)


@EVERY
@pytest.mark.parametrize("family", FAMILIES)
def test_state_dict_round_trip(method: str, family: str) -> None:
    model = adapted(method, family)
    shake(model)
    state = adapter_state_dict(model)
    fresh = adapted(method, family)
    load_adapter_state_dict(fresh, state)
    assert torch.equal(logits(fresh, texts(fresh)), logits(model, texts(model)))
    shake(model)  # the copies of the state dict do not move with the model
    assert all(torch.equal(value, state[key]) for key, value in adapter_state_dict(fresh).items())
    assert all(key.startswith("base_model.") and not value.requires_grad for key, value in state.items())


@EVERY
def test_same_seed_same_start_whatever_the_generator_did(method: str) -> None:
    torch.manual_seed(1)
    first = adapter_state_dict(adapted(method, "linear"))
    torch.manual_seed(2)
    second = adapter_state_dict(adapted(method, "linear"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_float32_and_gradients_are_right_on_a_low_precision_base(method: str, dtype: torch.dtype) -> None:
    model, exact = adapted(method, "linear", dtype), adapted(method, "linear")
    assert {parameter.dtype for parameter in adapter_parameters(model)} == {torch.float32}
    exact.load_state_dict({key: value.double() for key, value in model.state_dict().items()})
    for trained in (model, exact):
        shake(trained)
        loss(trained).backward()
    found = torch.cat([p.grad.flatten().double() for p in adapter_parameters(model) if p.grad is not None])
    expected = torch.cat([p.grad.flatten() for p in adapter_parameters(exact) if p.grad is not None])
    error = (found - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype == torch.float32 else 5e-2)


@EVERY
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_single_runs(method: str, family: str) -> None:
    model = adapted(method, family)
    some = ("c_proj",) if family == "conv1d" else ("k_proj",)
    if "embedding" in methods.get(method).layers:
        some += (EMBEDDING[family],)
    inject(model, config(method, r=2, target_modules=some), name="other", seed=2)
    shake(model, "default")
    shake(model, "other", seed=4)
    rows = ["other", None, "default", "other", "default"]
    before = torch.tensor(virtual_ids(model, "default")).long().expand(len(rows), -1)
    before = torch.where(torch.tensor([name is None for name in rows]).unsqueeze(1), 3, before)
    ids = torch.cat([before, tokens(len(rows))], dim=1)
    expected = []
    for row, name in enumerate(rows):
        set_adapter(model, name)
        expected.append(logits(model, ids[row : row + 1]))
    set_adapter(model, "default")
    with adapter_rows(model, rows):
        found = logits(model, ids)
    assert torch.allclose(found, torch.cat(expected), atol=1e-12, rtol=0)
    assert torch.allclose(logits(model, ids)[2:3], expected[2], atol=1e-12, rtol=0)  # as before, once outside


@EVERY
def test_removing_gives_the_base_back(method: str) -> None:
    model, base = adapted(method, "linear"), FAMILIES["linear"]().double()
    kinds = {name: type(module) for name, module in base.named_modules()}
    shake(model)
    remove_adapter(model, "default")
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert torch.equal(logits(model, tokens()), logits(base, tokens()))


@ADDING
def test_deltas_of_several_adapters_add_up(method: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    base = model(x).detach()
    for name in ("one", "two"):
        inject(model, config(method, r=2, target_modules=("0",)), name=name)
        shake(model, name)
    outputs = {}
    for name in ("one", "two"):
        set_adapter(model, name)
        outputs[name] = model(x).detach()
    set_adapter(model, ["one", "two"])
    both = model(x).detach()
    assert torch.allclose(both - base, outputs["one"] + outputs["two"] - 2 * base, atol=1e-12, rtol=0)
    merge(model)
    assert torch.allclose(model(x), both, atol=1e-12, rtol=0)
