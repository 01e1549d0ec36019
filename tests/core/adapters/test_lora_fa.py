"""LoRA-FA: A never moves, x is not kept, and the corrected step is the projected full gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.adapters import adapter_parameters, inject
from core.adapters.inject import training_rule
from core.config import AdapterConfig
from core.errors import ConfigError
from core.export.peft import save_adapter
from core.methods import methods
from tests.core.adapters.tiny import llama, logits, shake, tokens
from tests.core.toy import toy_config, toy_trainer


def kept_bytes(method: str, **settings: Any) -> int:
    """Bytes that autograd keeps of a layer of 512 x 512, rank 8, for 256 tokens, without those of the parameters."""
    layer = nn.Sequential(nn.Linear(512, 512, bias=False))
    inject(layer, AdapterConfig(method=method, r=8, target_modules=("0",), **settings), seed=1)
    layer.train()
    own = {parameter.data_ptr() for parameter in layer.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    x = torch.randn(256, 512, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x).sum()
    return sum(sizes.values())


def test_only_the_small_activation_is_kept() -> None:
    assert kept_bytes("lora_fa") == 256 * 8 * 4  # 8,192
    assert kept_bytes("lora") == 256 * 8 * 4 + 256 * 512 * 4  # 532,480


def test_half_of_lora_trains_and_the_file_is_the_same_size(tmp_path: Path) -> None:
    model = llama()
    config = AdapterConfig(method="lora_fa", r=2)
    inject(model, config, seed=1)
    assert all(parameter.shape[1] == 2 for parameter in adapter_parameters(model))
    plain = llama()
    inject(plain, AdapterConfig(r=2), seed=1)
    save_adapter(model, tmp_path / "fa")
    save_adapter(plain, tmp_path / "lora")
    files = [(tmp_path / name / "adapter_model.safetensors").stat().st_size for name in ("fa", "lora")]
    assert files[0] == files[1]
    assert methods.get("lora_fa").layer_parameters(config, 2, 100, 10) == 20


def test_a_never_moves() -> None:
    adapter = AdapterConfig(method="lora_fa", r=2)
    run = toy_trainer(toy_config(adapter=adapter, max_steps=4))
    before = {path: part.lora_A.clone() for path, part in run.rule.adapters.items()}  # type: ignore[union-attr,operator]
    list(run.steps())
    assert all(torch.equal(part.lora_A, before[path]) for path, part in run.rule.adapters.items())  # type: ignore[arg-type]


def test_corrected_step_is_the_full_gradient_projected_on_the_rows_of_a() -> None:
    layer = nn.Sequential(nn.Linear(12, 10)).double()
    inject(layer, AdapterConfig(method="lora_fa", r=3, lora_alpha=12.0, target_modules=("0",)), seed=1)
    shake(layer, size=0.3)
    x = torch.randn(40, 12, dtype=torch.float64)
    target = torch.randn(40, 10, dtype=torch.float64)
    host: Any = layer[0]
    adapter = host.adapter("default")
    (layer(x) - target).square().sum().backward()
    dense = (host.base_layer.weight + adapter.delta_weight()).detach().requires_grad_(True)
    (x @ dense.T + host.base_layer.bias - target).square().sum().backward()
    training_rule(layer, "default", 10).before_update(1)
    a = adapter.lora_A.detach()
    projection = a.T @ torch.linalg.inv(a @ a.T) @ a
    found = adapter.scale * adapter.lora_B.grad @ a
    torch.testing.assert_close(found, dense.grad @ projection, atol=1e-5, rtol=1e-6)


def test_without_correction_the_gradient_is_lora_s() -> None:
    models = []
    for method, options in (("lora_fa", {"correction": "none"}), ("lora", {})):
        model = llama().double()
        inject(model, AdapterConfig(method=method, r=2, method_options=options), seed=1)
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        training_rule(model, "default", 10).before_update(1)
        models.append(model)
    ours = [p.grad for p in adapter_parameters(models[0])]
    theirs = [p.grad for p in adapter_parameters(models[1]) if p.shape[1] == 2]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(logits(models[0], tokens()), logits(models[1], tokens()))


def test_dropout_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="undo the memory saved"):
        AdapterConfig(method="lora_fa", lora_dropout=0.1)
