"""Many adapters in one batch as two batched products: what every row says is what it says alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core.adapters import adapter_rows, inject, set_adapter
from core.adapters.inject import adapters_of
from core.adapters.switch import group_rows
from core.config import AdapterConfig
from tests.core.adapters.tiny import gpt2, llama, logits, shake, tokens

SETTINGS: dict[str, dict[str, Any]] = {
    "one": {"r": 2, "lora_alpha": 4.0},
    "two": {"r": 4, "lora_alpha": 1.0, "lora_dropout": 0.5},
    "three": {"method": "rslora", "r": 3},
    "some": {"r": 2, "target_modules": r".*(q_proj|c_fc)"},
}
ROWS = ["two", None, "three", "one", "some"]


def adapted(make: Any, **settings: dict[str, Any]) -> Any:
    model = make().double()
    for seed, (name, own) in enumerate(settings.items()):
        inject(model, AdapterConfig(**own), name, seed=seed)
        shake(model, name, size=0.3, seed=seed)
    return model.eval()


def alone(model: Any, ids: torch.Tensor, rows: list[str | None]) -> torch.Tensor:
    found = []
    for row, name in enumerate(rows):
        set_adapter(model, name)
        found.append(logits(model, ids[row : row + 1]))
    return torch.cat(found)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_every_row_says_what_it_says_alone(make: Any) -> None:
    model, ids = adapted(make, **SETTINGS), tokens(5)
    want = alone(model, ids, ROWS)
    groups = group_rows(model, ROWS)
    with adapter_rows(model, groups):
        torch.testing.assert_close(logits(model, ids), want, atol=1e-12, rtol=0)
    assert len(groups.stacks) == len(adapters_of(model).hosts), "all layers took the batched way"


def test_a_changed_adapter_is_stacked_anew() -> None:
    model, ids = adapted(llama, **SETTINGS), tokens(5)
    groups = group_rows(model, ROWS)
    with adapter_rows(model, groups):
        before = logits(model, ids)
    shake(model, "one", size=0.3, seed=11)
    with adapter_rows(model, groups):
        after = logits(model, ids)
    torch.testing.assert_close(after, alone(model, ids, ROWS), atol=1e-12, rtol=0)
    assert not torch.equal(after[3], before[3]) and torch.equal(after[:3], before[:3])


def test_methods_on_top_of_lora_run_one_by_one() -> None:
    model = adapted(llama, one=SETTINGS["one"], dora={"method": "dora", "r": 2})
    ids, rows = tokens(3), ["dora", "one", None]
    groups = group_rows(model, rows)
    with adapter_rows(model, groups):
        torch.testing.assert_close(logits(model, ids), alone_inside(model, ids, rows), atol=1e-12, rtol=0)
    assert groups.stacks == {}


def alone_inside(model: Any, ids: torch.Tensor, rows: list[str | None]) -> torch.Tensor:
    found = []
    for row, name in enumerate(rows):
        with adapter_rows(model, [name]):
            found.append(logits(model, ids[row : row + 1]))
    return torch.cat(found)


def test_gradients_take_the_way_that_has_them() -> None:
    model, groups = adapted(llama, **SETTINGS), None
    groups = group_rows(model, ROWS)
    with adapter_rows(model, groups):
        model(input_ids=tokens(5)).logits.sum()
    assert groups.stacks == {}
