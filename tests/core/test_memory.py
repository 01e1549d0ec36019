"""The memory estimate against what is counted on real modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.adapters import adapter_parameters, inject
from core.config import AdapterConfig, TrainConfig
from core.loss import find_head, loss_sum
from core.memory import estimate_memory, trainable_parameters
from core.models import ModelInfo, inspect_model
from tests.core.toy import toy_gpt2, toy_llama

ADAPTERS = [
    AdapterConfig(r=4),
    AdapterConfig(r=2, target_modules=("q_proj", "v_proj")),
    AdapterConfig(r=2, target_modules=r".*\.(q_proj|down_proj)"),
    AdapterConfig(r=2, exclude_modules=("down_proj",)),
    AdapterConfig(r=2, rank_pattern={"q_proj": 8}),
    AdapterConfig(r=2, target_modules=("q_proj",), modules_to_save=("lm_head",)),
]


def untied(**changes: Any) -> Any:
    return toy_llama(tie_word_embeddings=False, **changes)


def saved(model: Any, folder: Path) -> ModelInfo:
    model.save_pretrained(folder)
    return inspect_model(folder)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_trainable_parameters_are_those_of_the_injected_model(adapter: AdapterConfig, tmp_path: Path) -> None:
    model = untied()
    info = saved(model, tmp_path)
    inject(model, adapter)
    assert trainable_parameters(info, adapter) == sum(p.numel() for p in adapter_parameters(model))


def test_conv1d_counts_too(tmp_path: Path) -> None:
    model = toy_gpt2()
    info = saved(model, tmp_path)
    inject(model, AdapterConfig(r=2))
    assert trainable_parameters(info, AdapterConfig(r=2)) == sum(p.numel() for p in adapter_parameters(model))


def kept_bytes(model: Any, rows: int, length: int) -> int:
    """Bytes that autograd keeps for the backward pass, beside the parameters; each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    head = find_head(model)
    ids = torch.zeros(rows, length, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_sum(model.train(), head, ids, ids)
    return sum(sizes.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_within_a_quarter_of_what_autograd_keeps(tmp_path: Path, dropout: float, dtype: str) -> None:
    shape = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
    model = untied(**shape).to(getattr(torch, dtype))
    info = saved(model, tmp_path)
    config = TrainConfig(adapter=AdapterConfig(r=4, lora_dropout=dropout))
    inject(model, config.adapter)
    wanted = kept_bytes(model, 2, 64)
    estimate = estimate_memory(info, config, 2, 64, dtype)
    assert 0.75 * wanted < estimate["activations"] < 1.25 * wanted


def test_the_other_parts_are_exact(tmp_path: Path) -> None:
    model = untied()
    info = saved(model, tmp_path)
    estimate = estimate_memory(info, TrainConfig(adapter=AdapterConfig(r=4)), 2, 32, "float32")
    trained = trainable_parameters(info, AdapterConfig(r=4))
    assert estimate["weights"] == sum(p.nbytes for p in model.parameters())
    assert estimate["adapter"] == estimate["gradients"] == 4 * trained
    assert estimate["optimizer"] == 8 * trained
    assert estimate_memory(info, TrainConfig(dtype="bfloat16"), 2, 32)["weights"] == estimate["weights"] // 2
    assert estimate_memory(info, TrainConfig(), 10**6, 32)["logits"] == 3 << 28  # chunks bound it
