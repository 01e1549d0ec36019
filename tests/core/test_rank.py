"""Rank reports and rank pruning against the SVD of the dense change; and the rules of thumb."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.adapters import adapters, inject
from core.adapters.inject import adapters_of
from core.adapters.lora import LoRA
from core.compress import compress_adapter
from core.config import AdapterConfig
from core.errors import AdapterError, ConfigError
from core.export.pairs import open_pairs
from core.export.peft import load_adapter, read_adapter_config, save_adapter
from core.methods import methods
from core.rank import by_kind, rank_for_energy, rank_report, rank_report_of, recommend, suggest_rank
from tests.core.adapters.tiny import gpt2, llama, logits, shake, tokens

SETTINGS: dict[str, Any] = {
    "llama": {"target_modules": ("q_proj", "down_proj"), "rank_pattern": {"q_proj": 3}},
    "rslora": {"target_modules": ("q_proj", "k_proj"), "use_rslora": True, "alpha_pattern": {"k_proj": 3.0}},
    "gpt2": {"target_modules": ("wte", "c_attn", "c_fc")},
    "head": {"target_modules": ("q_proj",), "modules_to_save": ("lm_head",)},
}


def trained(case: str = "llama", **changes: Any) -> Any:
    """A float32 model with a shaken adapter."""
    model = gpt2() if case == "gpt2" else llama()
    inject(model, AdapterConfig(**{"r": 6, "lora_alpha": 9.0, **SETTINGS[case], **changes}), seed=1)
    shake(model, size=0.3)
    return model


def deltas(model: Any) -> dict[str, torch.Tensor]:
    found = {path: host.adapter("default") for path, host in adapters_of(model).hosts.items()}
    return {path: adapter.delta_weight() for path, adapter in found.items() if adapter is not None}


@pytest.mark.parametrize("case", SETTINGS)
def test_singular_values_are_those_of_the_dense_change(case: str, tmp_path: Path) -> None:
    """From the folder and from the model."""
    model = trained(case)
    reports = rank_report(save_adapter(model, tmp_path)), rank_report_of(model)
    expected = deltas(model)
    for report in reports:
        assert {layer.path for layer in report.layers} == expected.keys()
        for layer in report.layers:
            values = torch.linalg.svdvals(expected[layer.path]).numpy()
            assert np.abs(layer.values - values[: len(layer.values)]).max() < 1e-12 * values[0]
            assert values[len(layer.values) :].max(initial=0) < 1e-12 * values[0]
            assert layer.norm == pytest.approx(float(expected[layer.path].norm()), rel=1e-12)


def test_energy_and_effective_rank_of_known_values(tmp_path: Path) -> None:
    """Singular values 3, 2, 1 and 0: 9/14, 13/14 and all of the energy."""
    model = llama().double()
    inject(model, AdapterConfig(r=4, lora_alpha=4.0, target_modules=("layers.0.self_attn.q_proj",)))
    layer_adapter = adapters_of(model).hosts["model.layers.0.self_attn.q_proj"].adapter("default")
    with torch.no_grad():
        layer_adapter.lora_A.copy_(torch.eye(4, 16))
        layer_adapter.lora_B.copy_(torch.eye(16, 4) * torch.tensor([1.0, 3.0, 0.0, 2.0]))
    report = rank_report(save_adapter(model, tmp_path))
    (layer,) = report.layers
    assert np.allclose(layer.values, [3, 2, 1, 0], atol=1e-15)
    assert [layer.energy(r) for r in range(5)] == pytest.approx([0, 9 / 14, 13 / 14, 1, 1])
    assert [layer.rank_for(share) for share in (0.5, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert rank_for_energy(report, 0.95) == 3 and report.energy(2) == pytest.approx(13 / 14)
    entropy = -sum(p * math.log(p) for p in (3 / 6, 2 / 6, 1 / 6))
    assert layer.effective_rank == pytest.approx(math.exp(entropy))
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["rank"] == 4 and plain["rank_for_energy"]["0.95"] == 3
    assert by_kind(report) == {"q_proj": [3]}


def test_an_untrained_adapter_has_no_rank(tmp_path: Path) -> None:
    model = llama()
    inject(model, AdapterConfig(r=4))
    report = rank_report(save_adapter(model, tmp_path))
    assert all(layer.effective_rank == 0 and layer.norm == 0 for layer in report.layers)
    assert rank_for_energy(report, 0.99) == 1 and report.energy(1) == 1.0


@pytest.mark.parametrize("method", [name for name in methods.names() if methods.get(name).stores_pairs])
def test_files_of_methods_that_say_so_hold_the_whole_change(method: str, tmp_path: Path) -> None:
    model = llama()
    inject(model, AdapterConfig(method=method, r=4, lora_alpha=6.0, target_modules=("q_proj", "down_proj")), seed=1)
    shake(model)
    assert issubclass(adapters.get(method), LoRA)
    pairs = open_pairs(save_adapter(model, tmp_path))
    expected = deltas(model)
    assert pairs.products.keys() == expected.keys()
    for path, product in pairs.products.items():
        assert np.allclose(product.b @ product.a, expected[path].numpy(), atol=1e-14, rtol=0)


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("choice", [{"r": 2}, {"energy": 0.8}, {"r": 50}], ids=str)
def test_the_reported_error_is_the_measured_one(case: str, choice: dict[str, Any], tmp_path: Path) -> None:
    """||change - kept||_F, measured on the dense changes of the two models."""
    model = trained(case)
    before = deltas(model)
    report = rank_report(save_adapter(model, tmp_path / "one"))
    found = compress_adapter(tmp_path / "one", tmp_path / "two", **choice)
    twin = gpt2() if case == "gpt2" else llama()
    load_adapter(twin, tmp_path / "two")
    after = deltas(twin)
    assert after.keys() == before.keys() == found.errors.keys()
    for layer in report.layers:
        measured = float((before[layer.path] - after[layer.path]).norm())
        rank = min(choice.get("r") or layer.rank_for(0.8), layer.rank)
        assert found.ranks[layer.path] == rank
        assert found.errors[layer.path] == pytest.approx(measured, rel=1e-5, abs=1e-6)
        assert found.errors[layer.path] == pytest.approx(float(np.linalg.norm(layer.values[rank:])), abs=1e-12)
        assert 1 - (measured / layer.norm) ** 2 >= choice.get("energy", 0.0) - 1e-6
    both = [torch.cat([part.flatten() for part in every.values()]) for every in (before, after)]
    assert found.error == pytest.approx(float((both[0] - both[1]).norm()), rel=1e-5, abs=1e-5)
    assert found.relative_error == pytest.approx(found.error / float(both[0].norm()), rel=1e-12)


def test_nothing_is_lost_where_nothing_is_cut(tmp_path: Path) -> None:
    """Other trained weights come along, and so does what the base was quantised to."""
    model = trained("head")
    save_adapter(model, tmp_path / "one")
    (tmp_path / "one" / "method.json").write_text('{"quantization": "int8"}', encoding="utf-8")
    assert compress_adapter(tmp_path / "one", tmp_path / "two", r=6).error == 0
    twin = llama()
    load_adapter(twin, tmp_path / "two")
    assert (logits(twin, tokens()) - logits(model, tokens())).abs().max() < 1e-6
    assert json.loads((tmp_path / "two" / "method.json").read_text())["quantization"] == "int8"
    assert read_adapter_config(tmp_path / "two").modules_to_save == ("lm_head",)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_peft_reads_ranks_that_differ(tmp_path: Path) -> None:
    from peft import PeftModel

    save_adapter(trained(), tmp_path / "one")
    found = compress_adapter(tmp_path / "one", tmp_path / "two", energy=0.7)
    assert len(set(found.ranks.values())) > 1
    ours = llama()
    load_adapter(ours, tmp_path / "two")
    theirs = PeftModel.from_pretrained(llama(), tmp_path / "two").eval()
    assert (logits(ours, tokens()) - logits(theirs, tokens())).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_other_dtypes_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save_adapter(trained(), tmp_path)
    path = folder / "adapter_model.safetensors"
    tensors = {key: value.to(dtype) for key, value in load_file(path).items()}
    save_file(tensors, path)
    twin = llama()
    load_adapter(twin, folder)
    for layer in rank_report(folder).layers:
        assert layer.norm == pytest.approx(float(deltas(twin)[layer.path].norm()), rel=1e-12)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda tensors, key: tensors.pop(key.replace("lora_A", "lora_B")), "no pair of rank"),
        (lambda tensors, key: tensors.update({key: torch.zeros(2, 16)}), "no pair of rank"),
        (lambda tensors, key: tensors[key].fill_(float("nan")), "NaN or infinity"),
        (lambda tensors, key: tensors.clear(), "no pair of tensors"),
    ],
)
def test_damaged_files_are_refused(damage: Any, words: str, tmp_path: Path) -> None:
    folder = save_adapter(trained(), tmp_path)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    damage(tensors, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=words):
        rank_report(folder)


def test_what_is_refused(tmp_path: Path) -> None:
    folder = save_adapter(trained(), tmp_path / "one")
    for settings in ({}, {"r": 2, "energy": 0.5}, {"r": 0}, {"energy": 0.0}, {"energy": 1.5}):
        with pytest.raises(ConfigError):
            compress_adapter(folder, tmp_path / "two", **settings)  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match="not empty"):
        compress_adapter(folder, folder, r=2)
    with pytest.raises(ConfigError):
        rank_for_energy(rank_report(folder), 0.0)
    model = llama()
    inject(model, AdapterConfig(method="lora_drop", r=4))
    with pytest.raises(AdapterError, match="its base model"):
        rank_report(save_adapter(model, tmp_path / "three"))


def test_a_method_without_pairs_is_asked_on_its_base(tmp_path: Path) -> None:
    """LoRA-drop's files may have the shared pair once; on the base every layer has it."""
    base = llama()
    base.save_pretrained(tmp_path / "base")
    kept = {"kept": ("model.layers.0.self_attn.q_proj",)}
    config = AdapterConfig(method="lora_drop", r=4, target_modules=("q_proj", "k_proj"), method_options=kept)
    inject(base, config, seed=1)
    shake(base)
    folder = save_adapter(base, tmp_path / "adapter")
    report, expected = rank_report(folder, tmp_path / "base"), deltas(base)
    assert {layer.path for layer in report.layers} == expected.keys() and len(expected) == 4
    for layer in report.layers:
        assert layer.norm == pytest.approx(float(expected[layer.path].norm()), rel=1e-6)
    found = compress_adapter(folder, tmp_path / "two", r=2, base=tmp_path / "base")
    twin = llama()
    load_adapter(twin, tmp_path / "two")
    for path, delta in deltas(twin).items():
        assert found.errors[path] == pytest.approx(float((delta - expected[path]).norm()), rel=1e-5)


def test_rules_of_thumb() -> None:
    assert [suggest_rank(d) for d in (768, 4096, 12288)] == [7, 16, 28]
    assert [suggest_rank(4096, c) for c in (0.1, 0.5)] == [6, 32] and suggest_rank(4) == 1
    with pytest.raises(ConfigError):
        suggest_rank(0)
    millions = (135, 299, 300, 3_000, 3_001, 8_000)
    assert [recommend(n * 1_000_000) for n in millions] == [(4, 8), (4, 8), (8, 16), (8, 16), (16, 32), (16, 32)]


def test_reports_need_no_torch(tmp_path: Path) -> None:
    folder = save_adapter(trained(), tmp_path / "one")
    code = (
        "import sys; from core.rank import rank_report; from core.compress import compress_adapter; "
        "from core.export.portable import export_portable; "
        "rank_report(sys.argv[1]); compress_adapter(sys.argv[1], sys.argv[2] + '/a', r=2); "
        "export_portable(sys.argv[1], sys.argv[2] + '/b'); "
        "raise SystemExit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path)], check=False).returncode == 0
