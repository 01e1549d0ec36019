"""The layers a plan counts, from names alone, are those that the trainer adapts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.adapters import adapter_parameters, inject
from core.config import AdapterConfig
from core.errors import ConfigError
from core.methods import methods
from core.models import inspect_model
from core.selection import is_router, selected_targets
from tests.core.adapters.tiny import granite_moe, mixtral, qwen2_moe, qwen3_moe
from tests.core.toy import toy_gpt2, toy_llama

ADAPTERS = [
    AdapterConfig(r=4),
    AdapterConfig(r=2, target_modules=("q_proj", "v_proj")),
    AdapterConfig(r=2, target_modules=("self_attn.q_proj", "embed_tokens")),
    AdapterConfig(r=2, target_modules=r".*\.(q_proj|down_proj)"),
    AdapterConfig(r=2, target_modules=r".*layers\.1\..*_proj"),
    AdapterConfig(r=2, exclude_modules=("down_proj",)),
    AdapterConfig(r=2, exclude_modules=r".*layers\.0\..*"),
    AdapterConfig(r=2, rank_pattern={"q_proj": 8}),
    AdapterConfig(r=2, rank_pattern={r"layers\.1\.mlp\.up_proj": 5, "up_proj": 3}),
    AdapterConfig(r=2, target_modules=("q_proj",), modules_to_save=("lm_head",)),
    AdapterConfig(r=2, modules_to_save=("v_proj",)),
]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=range(len(ADAPTERS)))
@pytest.mark.parametrize("make", [lambda: toy_llama(tie_word_embeddings=False), toy_llama], ids=["untied", "tied"])
def test_counts_are_those_of_the_injected_model(make: Any, adapter: AdapterConfig, tmp_path: Path) -> None:
    model = make()
    if model.config.tie_word_embeddings and adapter.modules_to_save == ("lm_head",):
        return  # the weight files of a tied model have no head to count
    model.save_pretrained(tmp_path)
    info = inspect_model(tmp_path)
    injected = inject(model, adapter)
    assert methods.get("lora").trainable_parameters(info, adapter) == sum(p.numel() for p in adapter_parameters(model))
    paths = {path for target in selected_targets(info, adapter) for path in target.paths}
    assert paths == set(injected)


def test_conv1d_counts_too(tmp_path: Path) -> None:
    model = toy_gpt2()
    model.save_pretrained(tmp_path)
    inject(model, AdapterConfig(r=2))
    counted = methods.get("lora").trainable_parameters(inspect_model(tmp_path), AdapterConfig(r=2))
    assert counted == sum(p.numel() for p in adapter_parameters(model))


@pytest.mark.parametrize("make", [mixtral, qwen2_moe, qwen3_moe, granite_moe])
def test_routers_are_no_layers_to_adapt(make: Any, tmp_path: Path) -> None:
    """Of three experts and more, they have fewer outputs than a usual rank; a plan and the trainer leave them out."""
    model = make()
    model.save_pretrained(tmp_path)
    info, adapter = inspect_model(tmp_path), AdapterConfig(r=4)
    targets = selected_targets(info, adapter)
    for target in targets:
        for path, shape in zip(target.paths, target.shapes, strict=True):
            methods.get("lora").check_layer(adapter, path, *shape)
    injected = inject(model, adapter)
    assert {path for target in targets for path in target.paths} == set(injected)
    assert {"q_proj", "o_proj"} <= {path.rpartition(".")[2] for path in injected}


def test_what_a_router_is_called() -> None:
    routers = ("mlp.gate", "mlp.shared_expert_gate", "mlp.router", "ffn.router.layer", "altup.modality_router", "gate")
    assert all(is_router(path) for path in routers)
    assert not any(is_router(path) for path in ("mlp.gate_proj", "mlp.gate_up_proj", "mlp.shared_expert.gate_proj"))


@pytest.mark.parametrize("adapter", [AdapterConfig(target_modules="(q_proj"), AdapterConfig(exclude_modules="(q_proj")])
def test_a_broken_pattern_is_named(adapter: AdapterConfig, tmp_path: Path) -> None:
    toy_llama().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="not a regular expression"):
        selected_targets(inspect_model(tmp_path), adapter)


@pytest.mark.parametrize(
    "settings",
    [
        {"rank_pattern": {"q_proj": 1.5}}, {"rank_pattern": {"q_proj": "8"}}, {"rank_pattern": [1, 2]},
        {"alpha_pattern": {"q_proj": float("nan")}}, {"alpha_pattern": {"q_proj": "8"}}, {"alpha_pattern": None},
    ],
    ids=str,
)  # fmt: skip
def test_patterns_hold_numbers_that_a_rank_and_an_alpha_can_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="_pattern"):
        AdapterConfig(**settings)


def test_one_name_is_a_list_of_one() -> None:
    config = AdapterConfig(modules_to_save="lm_head", target_parameters="mlp.experts.down_proj")  # type: ignore[arg-type]
    assert (config.modules_to_save, config.target_parameters) == (("lm_head",), ("mlp.experts.down_proj",))
