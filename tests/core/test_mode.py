"""Modules are found once, and again after every change; a mode lasts for a while."""

from __future__ import annotations

import copy
import gc
import weakref

from torch import nn

from core.adapters import inject, remove_adapter
from core.config import AdapterConfig
from core.mode import all_modules, mode
from tests.core.toy import toy_llama


def check(model: nn.Module) -> None:
    assert all(one is other for one, other in zip(all_modules(model), model.modules(), strict=True))


def test_modules_are_those_of_torch_after_every_change() -> None:
    model = toy_llama()
    layer, shared = model.model.layers[0], nn.Linear(2, 2)
    check(model)
    inject(model, AdapterConfig(r=2))
    check(model)
    inject(model, AdapterConfig(r=2), "other")
    check(model)
    layer.extra = nn.Sequential(shared, nn.Sequential(shared))
    check(model)
    layer.extra[1][0] = nn.ReLU()
    check(model)
    layer.extra = None
    check(model)
    model.model.layers.append(nn.Identity())
    check(model)
    remove_adapter(model, "other")
    check(model)


def test_a_copy_has_its_own_modules_and_a_model_is_freed_at_once() -> None:
    model = toy_llama()
    check(model)
    check(copy.deepcopy(model))
    check(copy.copy(model))
    layer = model.model.layers[0]
    all_modules(layer)
    gone = weakref.ref(layer)
    gc.disable()
    try:
        del model, layer
        assert gone() is None
    finally:
        gc.enable()


def test_every_module_gets_its_own_mode_back() -> None:
    model = toy_llama().eval()
    model.model.layers[1].mlp.train()
    before = [module.training for module in model.modules()]
    with mode(model, training=True):
        assert all(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
