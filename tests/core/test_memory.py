"""The memory estimate against what is counted on real modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.adapters import inject
from core.config import AdapterConfig, TrainConfig
from core.loss import find_head, loss_sum
from core.memory import estimate_memory
from core.methods import methods
from core.models import ModelInfo, inspect_model
from core.ops import precision
from core.ops.fast_path import FastPath
from tests.core.toy import toy_llama


def untied(**changes: Any) -> Any:
    return toy_llama(tie_word_embeddings=False, **changes)


def saved(model: Any, folder: Path) -> ModelInfo:
    model.save_pretrained(folder)
    return inspect_model(folder)


def kept_bytes(model: Any, rows: int, length: int, path: FastPath) -> int:
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
    model.train()
    with path.running(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_sum(model, head, ids, ids)
    return sum(sizes.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fast_path", [False, True])
def test_activations_are_within_a_quarter_of_what_autograd_keeps(
    tmp_path: Path, dropout: float, dtype: str, fast_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_half_products", lambda: True)  # as on a GPU
    shape = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
    model = untied(**shape).to(getattr(torch, dtype))
    info = saved(model, tmp_path)
    config = TrainConfig(adapter=AdapterConfig(r=4, lora_dropout=dropout), fast_path=fast_path)
    inject(model, config.adapter)
    wanted = kept_bytes(model, 2, 64, FastPath(model, fast_path))
    estimate = estimate_memory(info, config, 2, 64, dtype)
    assert 0.75 * wanted < estimate["activations"] < 1.25 * wanted


def test_the_other_parts_are_exact(tmp_path: Path) -> None:
    model = untied()
    info = saved(model, tmp_path)
    estimate = estimate_memory(info, TrainConfig(adapter=AdapterConfig(r=4)), 2, 32, "float32")
    trained = methods.get("lora").trainable_parameters(info, AdapterConfig(r=4))
    assert estimate["weights"] == sum(p.nbytes for p in model.parameters())
    assert estimate["adapter"] == estimate["gradients"] == 4 * trained
    assert estimate["optimizer"] == 8 * trained
    assert estimate_memory(info, TrainConfig(dtype="bfloat16"), 2, 32)["weights"] == estimate["weights"] // 2
    assert estimate_memory(info, TrainConfig(), 10**6, 32)["logits"] == 3 << 28  # chunks bound it
