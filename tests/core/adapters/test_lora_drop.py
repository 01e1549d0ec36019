"""LoRA-drop: what the survey finds, what is shared, and that it survives saving and resuming."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from core.adapters import adapter_config, adapter_parameters, inject
from core.adapters.inject import adapters_of, training_rule
from core.adapters.lora_drop import choose
from core.checkpoint import load_checkpoint, save_checkpoint
from core.config import AdapterConfig
from core.errors import AdapterError, ConfigError
from core.export.peft import load_adapter, save_adapter
from core.methods.lora_drop import LoRADropOptions
from tests.core.adapters.tiny import logits, tokens
from tests.core.toy import toy_config, toy_llama, toy_trainer

IMPORTANCE = {"m.0.q": 0.5, "m.0.v": 0.05, "m.1.q": 0.3, "m.1.v": 0.15}


def test_choosing() -> None:
    assert choose(IMPORTANCE, LoRADropOptions(threshold=0.8)) == ["m.0.q", "m.1.q"]
    assert choose(IMPORTANCE, LoRADropOptions(threshold=1.0)) == list(IMPORTANCE)
    assert choose(IMPORTANCE, LoRADropOptions(select="top_n", top_n=1)) == ["m.0.q"]
    assert choose(IMPORTANCE, LoRADropOptions(scope="layer", threshold=0.5)) == ["m.0.q", "m.0.v"]
    sizes = [len(choose(IMPORTANCE, LoRADropOptions(threshold=t / 20))) for t in range(1, 21)]
    assert sizes == sorted(sizes)


def trainer(**options: Any) -> Any:
    adapter = AdapterConfig(
        method="lora_drop", r=2, method_options={"survey_share": 0.3, "select": "top_n", "top_n": 5, **options}
    )
    return toy_trainer(toy_config(adapter=adapter, epochs=100, max_steps=10))


def test_others_share_one_pair_by_name_and_shape() -> None:
    run = trainer()
    before = len(run.parameters)
    list(run.steps())
    assert sum(run.rule.importance.values()) == pytest.approx(1.0)
    parts = run.rule.adapters
    kept = [path for path, adapter in parts.items() if adapter.is_kept]
    assert len(kept) == 5 and tuple(kept) == adapter_config(run.model).method_options["kept"]
    kinds: dict[Any, set[int]] = {}
    for path, adapter in parts.items():
        if not adapter.is_kept:
            kinds.setdefault((path.rpartition(".")[2], adapter.lora_A.shape), set()).add(id(adapter.lora_A))
    assert kinds and all(len(storages) == 1 for storages in kinds.values())
    assert len(run.parameters) == 2 * (5 + len(kinds)) < before
    assert {id(p) for p in run.parameters} == {id(p) for p in adapter_parameters(run.model)}


def test_gradient_of_a_shared_pair_is_the_sum_over_its_layers() -> None:
    kept = ("model.layers.0.self_attn.q_proj",)
    config = AdapterConfig(method="lora_drop", r=2, target_modules=("q_proj", "v_proj"), method_options={"kept": kept})
    model, apart = toy_llama(num_hidden_layers=3).double(), toy_llama(num_hidden_layers=3).double()
    inject(model, config, seed=1)
    inject(apart, AdapterConfig(r=2, target_modules=("q_proj", "v_proj")), seed=1)
    with torch.no_grad():
        for path in adapters_of(apart).hosts:
            for own, other in zip(_pair(model, path), _pair(apart, path), strict=True):
                if path.endswith("0.self_attn.v_proj"):  # the first of those that share
                    own.copy_(torch.randn_like(own) * 0.1)
                other.copy_(own)
    for one in (model, apart):
        one(input_ids=tokens(), labels=tokens()).loss.backward()
    shared = adapters_of(model).hosts["model.layers.0.self_attn.v_proj"].adapter("default")
    assert isinstance(shared, nn.Module)
    for name in ("lora_A", "lora_B"):
        parts = [
            getattr(host.adapter("default"), name).grad
            for path, host in adapters_of(apart).hosts.items()
            if path.endswith("v_proj")
        ]
        torch.testing.assert_close(getattr(shared, name).grad, sum(parts), atol=1e-10, rtol=0)


def _pair(model: Any, path: str) -> tuple[Any, Any]:
    adapter: Any = adapters_of(model).hosts[path].adapter("default")
    return adapter.lora_A, adapter.lora_B


def test_keeping_all_layers_is_lora() -> None:
    run = trainer(select="threshold", threshold=1.0)
    list(run.steps())
    assert all(adapter.is_kept for adapter in run.rule.adapters.values())


@pytest.mark.parametrize("shared", ["frozen", "none"])
def test_others_do_not_train_when_asked(shared: str) -> None:
    run = trainer(shared=shared)
    for metrics in run.steps():
        if metrics.step == 3:
            others = {path: a.lora_B.clone() for path, a in run.rule.adapters.items() if not a.is_kept}
            values = [bool(value.any()) for value in others.values()]
            assert all(values) if shared == "frozen" else not any(values)
    assert all(torch.equal(run.rule.adapters[path].lora_B, value) for path, value in others.items())
    assert len(run.parameters) == 10


def test_survey_finds_the_layers_that_were_planted() -> None:
    """Only two layers' outputs are moved; they are the ones that are kept."""
    model = toy_llama()
    inject(model, AdapterConfig(method="lora_drop", r=2, method_options={"select": "top_n", "top_n": 2}), seed=1)
    rule: Any = training_rule(model, "default", 10)
    rule.sample = lambda: logits(model, tokens())
    planted = ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.v_proj"]
    with torch.no_grad():
        for path in planted:
            rule.adapters[path].lora_B.fill_(0.3)
        rule.adapters["model.layers.1.mlp.up_proj"].lora_B.fill_(1e-4)
    optimizer = torch.optim.SGD(list(adapter_parameters(model)), lr=0.1)
    assert rule.after_update(1, optimizer)
    assert [path for path, adapter in rule.adapters.items() if adapter.is_kept] == sorted(planted)


@pytest.mark.parametrize("stop", [2, 6])
def test_resumed_run_equals_the_unbroken_one(tmp_path: Path, stop: int) -> None:
    whole = trainer()
    list(whole.steps())
    first = trainer()
    for metrics in first.steps():
        if metrics.step == stop:
            break
    save_checkpoint(first, tmp_path)
    second = trainer()
    load_checkpoint(second, tmp_path / f"step-{stop:06d}")
    list(second.steps())
    assert len(whole.parameters) == len(second.parameters)
    for a, b in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)


def test_saved_for_every_layer_and_loaded_shared(tmp_path: Path) -> None:
    run = trainer()
    list(run.steps())
    save_adapter(run.model, tmp_path)
    loaded = toy_llama()
    load_adapter(loaded, tmp_path)
    assert torch.equal(logits(loaded, tokens()), logits(run.model.eval(), tokens()))
    count = sum(p.numel() for p in run.parameters)
    assert sum(p.numel() for p in adapter_parameters(loaded)) == count


@pytest.mark.parametrize("shared", ["train", "frozen", "none"])
def test_peft_reads_the_same_from_the_file(shared: str, tmp_path: Path) -> None:
    run = trainer(shared=shared)
    list(run.steps())
    save_adapter(run.model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft only warns of what a file lacks
        theirs = PeftModel.from_pretrained(toy_llama(), tmp_path).eval()
    expected = logits(run.model.eval(), tokens())
    assert (expected - logits(toy_llama(), tokens())).abs().max() > 1e-2
    torch.testing.assert_close(logits(theirs, tokens()), expected, atol=1e-5, rtol=0)


def test_files_that_have_a_shared_pair_once_are_read_too(tmp_path: Path) -> None:
    """As they were written until now; a pair under none of its names is missing."""
    run = trainer()
    list(run.steps())
    path = save_adapter(run.model, tmp_path) / "adapter_model.safetensors"
    tensors = load_file(path)
    same: dict[str, list[str]] = {}
    for key, tensor in tensors.items():
        same.setdefault(f"{tensor.shape}{tensor.flatten().tolist()}", []).append(key)
    more = [key for keys in same.values() for key in keys[1:]]
    assert more
    save_file({key: tensor for key, tensor in tensors.items() if key not in more}, path)
    loaded = toy_llama()
    load_adapter(loaded, tmp_path)
    assert torch.equal(logits(loaded, tokens()), logits(run.model.eval(), tokens()))
    lost = next(keys for keys in same.values() if len(keys) > 1)
    save_file({key: tensor for key, tensor in tensors.items() if key not in lost}, path)
    with pytest.raises(AdapterError, match=f"{len(lost)} missing"):
        load_adapter(toy_llama(), tmp_path)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="patterns"):
        AdapterConfig(method="lora_drop", rank_pattern={"q_proj": 2})
    with pytest.raises(ConfigError, match="2 steps"):
        toy_trainer(toy_config(adapter=AdapterConfig(method="lora_drop", r=2), max_steps=1))
