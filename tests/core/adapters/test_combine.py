"""Weighted sums of adapters against dense sums, autograd-free; and against peft's own combination."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from core.adapters import adapter_config, adapter_names, inject, merge, set_adapter
from core.adapters.change import product_of
from core.adapters.combine import combine_adapters
from core.adapters.inject import adapters_of
from core.config import AdapterConfig
from core.errors import AdapterError
from core.export.peft import load_adapter, save_adapter
from core.methods import methods
from tests.core.adapters.tiny import gpt2, llama, logits, shake, tokens


def with_two(make: Any = llama, first: Any = "all-linear", second: Any = "all-linear", **settings: Any) -> Any:
    """A float64 model with the adapters one (rank 4, scale 2) and two (rank 3, rsLoRA)."""
    model = make().double()
    inject(model, AdapterConfig(r=4, lora_alpha=8.0, target_modules=first, **settings), "one", seed=1)
    shake(model, "one", 0.3, seed=1)
    inject(model, AdapterConfig(method="rslora", r=3, lora_alpha=5.0, target_modules=second), "two", seed=2)
    shake(model, "two", 0.3, seed=2)
    return model


def deltas(model: Any, name: str) -> dict[str, torch.Tensor]:
    found = {path: host.adapter(name) for path, host in adapters_of(model).hosts.items()}
    return {path: adapter.delta_weight() for path, adapter in found.items() if adapter is not None}


def dense_sum(model: Any, one: float, two: float) -> dict[str, torch.Tensor]:
    found = {path: one * delta for path, delta in deltas(model, "one").items()}
    for path, delta in deltas(model, "two").items():
        found[path] = found[path] + two * delta if path in found else two * delta
    return found


MODELS = {
    "llama": (llama, "all-linear", "all-linear"),
    "different layers": (llama, ("q_proj", "down_proj"), ("q_proj", "k_proj")),
    "conv1d": (gpt2, ("c_attn", "c_fc"), ("c_attn", "c_proj")),
    "embedding": (gpt2, ("wte", "c_attn"), ("wte",)),
}


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, -1.5), (1.0, 0.0)], ids=str)
def test_cat_is_the_exact_sum(case: str, weights: tuple[float, float]) -> None:
    model = with_two(*MODELS[case])
    expected = dense_sum(model, *weights)
    losses = combine_adapters(model, ["one", "two"], weights, "sum")
    found = deltas(model, "sum")
    assert found.keys() == expected.keys() == losses.keys() and set(losses.values()) == {0.0}
    assert all((found[path] - expected[path]).abs().max() < 1e-14 for path in expected)
    assert adapters_of(model).active == ("sum",)


def test_both_active_is_the_sum_with_weights_one() -> None:
    model = with_two()
    set_adapter(model, ["one", "two"])
    expected = logits(model, tokens())
    combine_adapters(model, ["one", "two"], [1, 1], "sum")
    assert (logits(model, tokens()) - expected).abs().max() < 1e-12
    merge(model, "sum")
    assert (logits(model, tokens()) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("r", [1, 4, None])
def test_svd_is_the_closest_and_its_loss_is_exact(case: str, r: int | None) -> None:
    """Against the SVD of the dense sum (Eckart and Young): the same matrix, and the reported loss is its distance."""
    model = with_two(*MODELS[case])
    expected = dense_sum(model, 0.7, -0.4)
    losses = combine_adapters(model, ["one", "two"], [0.7, -0.4], "sum", method="svd", r=r)
    for path, found in deltas(model, "sum").items():
        u, s, vt = torch.linalg.svd(expected[path], full_matrices=False)
        host = adapters_of(model).hosts[path]
        ranks = [part.lora_factors()[0].shape[0] for name in ("one", "two") if (part := host.adapter(name)) is not None]
        rank = r or max(ranks)
        closest = (u[:, :rank] * s[:rank]) @ vt[:rank]
        assert (found - closest).norm() < 1e-12 * s[0], path
        measured = float((found - expected[path]).norm() / expected[path].norm())
        assert abs(losses[path] - measured) < 1e-12, path
        assert abs(losses[path] - float(s[rank:].norm() / s.norm())) < 1e-12
    assert max(losses.values()) > 0.1 or case == "embedding" or r is None


def test_an_adapter_less_itself_is_nothing_and_loses_nothing() -> None:
    model = with_two()
    losses = combine_adapters(model, ["one", "one"], [1.0, -1.0], "none", method="svd")
    assert max(abs(value) for delta in deltas(model, "none").values() for value in delta.flatten()) < 1e-14
    assert all(0 <= loss <= 1 for loss in losses.values())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("method", ["cat", "svd"])
def test_equals_pefts_own_combination(method: str, tmp_path: Path) -> None:
    model = with_two(first=("q_proj", "up_proj"), second=("q_proj", "up_proj"))
    for name in ("one", "two"):
        save_adapter(model, tmp_path / name, name)
    theirs = PeftModel.from_pretrained(llama().double(), tmp_path / "one", adapter_name="one").eval()
    theirs.load_adapter(tmp_path / "two", "two")
    rank = {"svd_rank": 3} if method == "svd" else {}
    theirs.add_weighted_adapter(["one", "two"], [0.8, 0.3], "sum", combination_type=method, **rank)
    theirs.set_adapter("sum")
    combine_adapters(model, ["one", "two"], [0.8, 0.3], "sum", method=method, r=3 if rank else None)
    assert (logits(model, tokens()) - logits(theirs, tokens())).abs().max() < 1e-6  # peft's SVD is float32


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ranks_that_differ_by_layer_survive_the_file(tmp_path: Path) -> None:
    """Layers with one adapter and with both have different ranks: rank_pattern, for peft and for us."""
    model = with_two(llama, ("q_proj", "down_proj"), ("q_proj", "k_proj"))
    combine_adapters(model, ["one", "two"], [1.0, -0.5], "sum")
    expected = logits(model, tokens())
    config = adapter_config(model, "sum")
    assert {config.r, *config.rank_pattern.values()} == {3, 4, 7}
    save_adapter(model, tmp_path, "sum")
    theirs = PeftModel.from_pretrained(llama().double(), tmp_path).eval()
    assert (logits(theirs, tokens()) - expected).abs().max() < 1e-12
    twin = llama().double()
    load_adapter(twin, tmp_path)
    assert torch.equal(logits(twin, tokens()), expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": []}, "0 adapters"),
        ({"weights": [1.0]}, "2 adapters and 1 weights"),
        ({"weights": [1.0, float("nan")]}, "nan"),
        ({"method": "linear"}, "no way 'linear'"),
        ({"method": "svd", "r": 0}, "r is 0"),
        ({"r": 4}, "only with 'svd'"),
        ({"names": ["one", "three"]}, "no adapter 'three'"),
        ({"into": "one"}, "already has an adapter 'one'"),
    ],
    ids=str,
)
def test_what_is_refused(changes: dict[str, Any], words: str) -> None:
    model = with_two()
    arguments = {"names": ["one", "two"], "weights": [1.0, 1.0], "into": "sum", **changes}
    with pytest.raises(AdapterError, match=words):
        combine_adapters(model, **arguments)
    assert adapter_names(model) == ["one", "two"]


def test_not_while_merged_and_not_with_trained_base_weights() -> None:
    model = with_two()
    merge(model, "one")
    with pytest.raises(AdapterError, match="merged"):
        combine_adapters(model, ["one", "two"], [1, 1], "sum")
    model = with_two(modules_to_save=("lm_head",))
    with pytest.raises(AdapterError, match="trains parameters of 'lm_head'"):
        combine_adapters(model, ["one", "two"], [1, 1], "sum")


@pytest.mark.parametrize("method", [name for name in methods.names() if methods.get(name).uses >= {"target_modules"}])
def test_factors_of_every_method_are_its_change_or_it_is_refused(method: str) -> None:
    model = llama().double()
    used = {"r": 4, "target_modules": ("q_proj", "down_proj")}
    config = AdapterConfig(method=method, **{key: v for key, v in used.items() if key in methods.get(method).uses})
    inject(model, config, "one", seed=1)
    shake(model, "one")
    parts = [part for host in adapters_of(model).hosts.values() if (part := host.adapter("one")) is not None]
    pairs = [product_of(part) for part in parts]
    for part, pair in zip(parts, pairs, strict=True):
        if pair is not None:
            assert np.allclose(pair.b @ pair.a, part.delta_weight().numpy(), atol=1e-14, rtol=0)
            weight = torch.randn(part.delta_weight().shape, dtype=torch.float64)
            merged = part.merge_block(weight, slice(None)) - weight
            assert np.allclose(pair.b @ pair.a, merged.numpy(), atol=1e-12, rtol=0)
    if any(pair is None for pair in pairs):
        with pytest.raises(AdapterError, match=r"no two factors"):
            combine_adapters(model, ["one"], [1.0], "sum")
    else:
        combine_adapters(model, ["one"], [2.0], "sum")
        doubled = deltas(model, "sum")
        assert all((2 * delta - doubled[path]).abs().max() < 1e-13 for path, delta in deltas(model, "one").items())
