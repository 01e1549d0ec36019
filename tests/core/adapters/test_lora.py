"""LoRA and rsLoRA against the plain formulas, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from core.adapters import adapter_parameters, adapter_state_dict, inject, merge, unmerge
from core.adapters.merged_weight import merged_weight, round_once
from core.config import AdapterConfig
from core.ops.dropout import draw_seed, dropout_reference
from tests.core.adapters.tiny import gemma3, gpt2, llama, logits, shake, tokens


def one_layer(base: nn.Module, **settings: object) -> nn.Sequential:
    model = nn.Sequential(base.double())
    config = AdapterConfig(**{"r": 3, "lora_alpha": 6.0, "target_modules": ("0",), **settings})  # type: ignore[arg-type]
    inject(model, config, seed=0)
    shake(model, size=0.3)
    return model


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_output_and_gradients_are_those_of_the_formula(kind: str) -> None:
    """y = W x + b + s B A x; dA = s B^T g x^T, dB = s g (A x)^T, dx = W^T g + s A^T B^T g."""
    model = one_layer(nn.Linear(5, 4) if kind == "linear" else Conv1D(4, 5))
    base, adapter = model[0].base_layer, model[0].adapter("default")
    w = base.weight.detach() if kind == "linear" else base.weight.detach().T
    a, b, s = adapter.lora_A.detach(), adapter.lora_B.detach(), 6 / 3
    x = torch.randn(2, 7, 5, dtype=torch.float64, requires_grad=True)
    g = torch.randn(2, 7, 4, dtype=torch.float64)
    y = model(x)
    y.backward(g)
    rows, grads = x.detach().reshape(-1, 5), g.reshape(-1, 4)
    assert torch.allclose(y.detach(), x.detach() @ (w + s * b @ a).T + base.bias, atol=1e-12, rtol=0)
    assert torch.allclose(adapter.lora_A.grad, s * b.T @ grads.T @ rows, atol=1e-12, rtol=0)
    assert torch.allclose(adapter.lora_B.grad, s * grads.T @ (rows @ a.T), atol=1e-12, rtol=0)
    assert x.grad is not None and torch.allclose(x.grad, g @ (w + s * b @ a), atol=1e-12, rtol=0)
    assert base.weight.grad is None


def test_embedding_is_a_table_with_the_delta_added() -> None:
    model = one_layer(nn.Embedding(9, 4, padding_idx=2))
    adapter, base = model[0].adapter("default"), model[0].base_layer
    ids = torch.tensor([[0, 2, 8], [8, 8, 1]])
    a, b = (tensor.detach().clone().requires_grad_() for tensor in (adapter.lora_A, adapter.lora_B))
    expected = F.embedding(ids, base.weight.detach() + 2 * (b @ a).T)
    found = model(ids)
    assert torch.allclose(found, expected, atol=1e-12, rtol=0)
    weights = torch.randn(found.shape, dtype=torch.float64)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert a.grad is not None and b.grad is not None
    a.grad[:, 2] = 0  # the row of the padding token does not train
    assert torch.allclose(adapter.lora_A.grad, a.grad, atol=1e-12, rtol=0)
    assert torch.allclose(adapter.lora_B.grad, b.grad, atol=1e-12, rtol=0)


def test_start_values() -> None:
    model = nn.Sequential(nn.Linear(400, 300), nn.Embedding(50, 60))
    inject(model, AdapterConfig(r=40, target_modules=("0", "1")), seed=0)
    linear, table = model[0].adapter("default"), model[1].adapter("default")
    assert not linear.lora_B.any() and not table.lora_A.any()
    assert linear.lora_A.abs().max() <= 1 / math.sqrt(400)
    assert linear.lora_A.var().item() == pytest.approx(1 / (3 * 400), rel=0.05)
    assert table.lora_B.std().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(("method", "spread"), [("rslora", 1.3), ("lora", 10.0)])
def test_rslora_output_keeps_its_size_at_every_rank(method: str, spread: float) -> None:
    """With B of unit variance the output's std is the same for r = 4 ... 256 with rsLoRA, and falls with LoRA."""
    sizes = []
    for r in (4, 16, 64, 256):
        model = nn.Sequential(nn.Linear(256, 256, bias=False))
        config = AdapterConfig(method=method, r=r, lora_alpha=1.0, target_modules=("0",))
        inject(model, config, seed=0)
        adapter = model[0].adapter("default")
        nn.init.normal_(adapter.lora_B)
        x = torch.randn(512, 256)
        sizes.append(float((model(x) - model[0].base_layer(x)).detach().std()))
    ratio = max(sizes) / min(sizes)
    assert ratio < spread if method == "rslora" else ratio > 7  # sqrt(256 / 4) = 8


@pytest.mark.parametrize(("settings", "scale"), [({}, 2.0), ({"use_rslora": True}, 8 / 2), ({"method": "rslora"}, 4.0)])
def test_scale(settings: dict[str, object], scale: float) -> None:
    model = llama()
    inject(model, AdapterConfig(r=4, lora_alpha=8.0, **settings))  # type: ignore[arg-type]
    assert model.model.layers[0].mlp.up_proj.adapter("default").scale == scale


def test_scale_follows_the_patterns_of_each_module() -> None:
    model = llama()
    config = AdapterConfig(
        r=4,
        lora_alpha=8.0,
        rank_pattern={"layers.1.self_attn.q_proj": 2, "q_proj": 3},
        alpha_pattern={r"layers\.0\.mlp\..*": 1.0},
    )
    inject(model, config)
    layers = model.model.layers
    found = {
        "q0": layers[0].self_attn.q_proj,
        "q1": layers[1].self_attn.q_proj,
        "k0": layers[0].self_attn.k_proj,
        "up0": layers[0].mlp.up_proj,
        "up1": layers[1].mlp.up_proj,
    }
    shapes = {key: host.adapter("default").lora_A.shape[0] for key, host in found.items()}
    assert shapes == {"q0": 3, "q1": 2, "k0": 4, "up0": 4, "up1": 4}
    scales = {key: host.adapter("default").scale for key, host in found.items()}
    assert scales == {"q0": 8 / 3, "q1": 4.0, "k0": 2.0, "up0": 0.25, "up1": 2.0}


def test_dropout_is_on_the_adapters_input_only_and_off_in_eval() -> None:
    model = one_layer(nn.Linear(200, 4), lora_dropout=0.5)
    adapter, base = model[0].adapter("default"), model[0].base_layer
    x = torch.ones(1, 200, dtype=torch.float64)
    model.eval()
    expected = base(x) + 2 * (x @ adapter.lora_A.T) @ adapter.lora_B.T
    assert torch.allclose(model(x), expected, atol=1e-12, rtol=0)
    model.train()
    torch.manual_seed(3)
    found = model(x)
    torch.manual_seed(3)
    mask = dropout_reference(x, draw_seed(x.device), 0.5)
    assert torch.allclose(found, base(x) + 2 * (mask @ adapter.lora_A.T) @ adapter.lora_B.T, atol=1e-12, rtol=0)


def test_injecting_in_eval_does_not_turn_dropout_on() -> None:
    model = llama()
    inject(model, AdapterConfig(r=2, lora_dropout=0.5))
    shake(model)
    assert torch.equal(logits(model, tokens()), logits(model, tokens()))


@pytest.mark.parametrize("shape", [(1000, 1000, 2, 4_000), (12288, 12288, 1, 24_576), (768, 3072, 8, 30_720)])
def test_counts(shape: tuple[int, int, int, int]) -> None:
    d_in, d_out, r, expected = shape
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(d_in, d_out, bias=False))
        inject(model, AdapterConfig(r=r, target_modules=("0",)))
    assert sum(parameter.numel() for parameter in adapter_parameters(model)) == expected == r * (d_in + d_out)


def test_bf16_merge_is_the_float64_sum_rounded_once() -> None:
    """Every one of 256k weights is the nearest bfloat16 of W + s B A; peft's safe_merge misses 12.9 % of them."""
    model = nn.Sequential(nn.Linear(512, 512, bias=False, dtype=torch.bfloat16))
    inject(model, AdapterConfig(r=16, target_modules=("0",)), seed=0)
    shake(model, size=0.02)
    base, adapter = model[0].base_layer, model[0].adapter("default")
    original = base.weight
    exact = original.double() + adapter.scale * (adapter.lora_B.double() @ adapter.lora_A.double())
    merge(model)
    merged = base.weight.double()
    assert base.weight.dtype == torch.bfloat16 and not torch.equal(base.weight, original)
    up = torch.nextafter(base.weight, torch.full_like(base.weight, torch.inf)).double()
    down = torch.nextafter(base.weight, torch.full_like(base.weight, -torch.inf)).double()
    nearest = torch.minimum((up - exact).abs(), (down - exact).abs())
    wrong = (merged - exact).abs() > nearest * (1 + 1e-6)
    assert int(wrong.sum()) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_happens_once(dtype: torch.dtype) -> None:
    """A hair above or below the middle of two 16-bit numbers goes to the side it is on, unlike with a plain cast."""
    low = torch.tensor([1.0, -3.0, 0.1, 2.0**-20], dtype=dtype)
    high = torch.nextafter(low, torch.full_like(low, torch.inf))
    middle = (low.double() + high.double()) / 2
    for hair in (1e-12, 1e-10):
        assert torch.equal(round_once(middle + hair * middle.abs(), dtype), high)
        assert torch.equal(round_once(middle - hair * middle.abs(), dtype), low)
    assert torch.equal(round_once(middle, dtype), middle.to(dtype))
    assert torch.equal(round_once(low.double(), dtype), low)


def test_blocks_of_rows_give_the_whole_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    model = one_layer(Conv1D(4, 50))
    adapter, weight = model[0].adapter("default"), model[0].base_layer.weight.detach()
    whole = weight + adapter.delta_weight()
    for size in ("BLOCK_ELEMENTS", "CACHED_ELEMENTS"):
        monkeypatch.setattr(f"core.adapters.merged_weight.{size}", 12)  # three rows at a time
    assert torch.allclose(merged_weight(weight, [adapter]), whole, atol=1e-15, rtol=0)


def test_merging_in_inference_mode_first_is_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.adapters.merged_weight._scratch.kept", None)
    layer = one_layer(nn.Linear(50, 40))[0]
    adapter, weight = layer.adapter("default"), layer.base_layer.weight.detach().bfloat16()
    with torch.inference_mode():
        inside = merged_weight(weight, [adapter])
    assert torch.equal(merged_weight(weight, [adapter]), inside)
    assert torch.equal(inside, round_once(weight.double() + adapter.delta_weight(), torch.bfloat16))


def test_gemma_scales_the_embedding_delta_too() -> None:
    model = gemma3().double()
    inject(model, AdapterConfig(r=2, target_modules=("embed_tokens",)))
    shake(model)
    expected = logits(model, tokens())
    merge(model)
    assert (logits(model, tokens()) - expected).abs().max() < 1e-12


def test_merging_a_tied_embedding_leaves_the_output_layer_alone() -> None:
    model = gpt2().double()
    inject(model, AdapterConfig(r=2, target_modules=("wte",)))
    shake(model)
    head = model.lm_head.weight
    before, expected = head.clone(), logits(model, tokens())
    merge(model)
    assert torch.equal(model.lm_head.weight, before)
    assert (logits(model, tokens()) - expected).abs().max() < 1e-12
    unmerge(model)
    assert model.transformer.wte.base_layer.weight is head, "tied again"


def test_state_keys_are_pefts() -> None:
    model = gpt2()
    inject(model, AdapterConfig(r=2, target_modules=("wte", "c_fc"), bias="lora_only", modules_to_save=("ln_f",)))
    keys = {key.removeprefix("base_model.model.transformer.") for key in adapter_state_dict(model)}
    layers = {
        f"h.{i}.mlp.c_fc.{leaf}" for i in (0, 1) for leaf in ("lora_A.weight", "lora_B.weight", "base_layer.bias")
    }
    assert keys == {"wte.lora_embedding_A", "wte.lora_embedding_B", "ln_f.weight", "ln_f.bias", *layers}
