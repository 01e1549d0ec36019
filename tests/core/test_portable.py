"""The portable export by every loader's own rules, each worked out from the two files as that loader does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from core.adapters import Adapter, adapters, inject
from core.adapters.base import ALL_ROWS
from core.adapters.inject import adapters_of
from core.adapters.lora import LoRA
from core.config import AdapterConfig
from core.errors import AdapterError
from core.export.peft import load_adapter, save_adapter
from core.export.portable import export_portable
from tests.core.adapters.tiny import gpt2, llama, logits, shake, tokens

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "all-linear": (llama, {}),
    "rslora": (llama, {"method": "rslora", "target_modules": ("q_proj", "up_proj")}),
    "patterns": (
        llama,
        {
            "target_modules": ("q_proj", "k_proj", "down_proj"),
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "k_proj": 6},
            "alpha_pattern": {"q_proj": 5.5},
        },
    ),
    "regex": (llama, {"target_modules": r".*\.(q|v)_proj", "exclude_modules": r".*layers\.1.*"}),
    "dynamic rank": (llama, {"method": "dynamic_rank", "target_modules": ("v_proj",)}),
    "conv1d": (gpt2, {"target_modules": ("c_attn", "attn.c_proj")}),
}


def exported(case: str, folder: Path) -> tuple[Any, dict[str, Any], dict[str, torch.Tensor]]:
    """The model with its adapter, and the config and tensors of the portable folder (`folder` / out)."""
    make, settings = CASES[case]
    model = make()
    model.save_pretrained(folder / "base")
    inject(model, AdapterConfig(**{"r": 4, "lora_alpha": 6.5, **settings}), seed=1)
    shake(model, size=0.2)
    save_adapter(model, folder / "one", base_model="some/base")
    found = export_portable(folder / "one", folder / "out", base=folder / "base")
    assert set(found.losses.values()) == {0.0}
    config = json.loads((folder / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    return model, config, load_file(folder / "out" / "adapter_model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_peft_and_the_studio_load_it(case: str, tmp_path: Path) -> None:
    model, _, _ = exported(case, tmp_path)
    expected = logits(model, tokens())
    theirs = PeftModel.from_pretrained(CASES[case][0](), tmp_path / "out").eval()
    assert (logits(theirs, tokens()) - expected).abs().max() < 1e-5
    ours = CASES[case][0]()
    load_adapter(ours, tmp_path / "out")
    assert (logits(ours, tokens()) - expected).abs().max() < 1e-5
    assert (expected - logits(CASES[case][0](), tokens())).abs().max() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_the_same_change(case: str, tmp_path: Path) -> None:
    """Its scale is lora_alpha over the number of columns of B, whatever else the config says."""
    model, config, tensors = exported(case, tmp_path)
    for path, host in adapters_of(model).hosts.items():
        a, b = (tensors[f"base_model.model.{path}.lora_{letter}.weight"].double() for letter in "AB")
        change = config["lora_alpha"] / b.shape[1] * (b @ a)
        delta = host.adapter("default").delta_weight()
        assert (change - (delta.T if config["fan_in_fan_out"] else delta)).abs().max() < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_vllm_and_ollama_find_what_they_ask_for(case: str, tmp_path: Path) -> None:
    """vLLM: only A and B of plain layers, one rank, one alpha / r, none of what it refuses. Ollama: alpha a uint32."""
    _, config, tensors = exported(case, tmp_path)
    keys = [re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key) for key in tensors]
    assert all(keys)
    assert {match[1].rpartition(".")[2] for match in keys if match} == set(config["target_modules"])
    assert all(re.fullmatch(r"\w+", name) for name in config["target_modules"])
    ranks = {tensor.shape[0 if ".lora_A." in key else 1] for key, tensor in tensors.items()}
    assert ranks == {config["r"]} == {config["lora_alpha"]} and type(config["lora_alpha"]) is int
    assert config["lora_alpha"] / config["r"] == 1 and not config["use_rslora"] and not config["use_dora"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {} and config["modules_to_save"] is None
    assert config["bias"] == "none" and config["peft_type"] == "LORA"
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    text = (tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8")
    assert re.search(r'"lora_alpha": \d+,', text) and config["base_model_name_or_path"] == "some/base"


def test_layers_that_a_plain_name_means_too_are_there_as_zeros(tmp_path: Path) -> None:
    _, _, tensors = exported("regex", tmp_path)
    paths = {key for key in tensors if ".layers.1." in key}
    assert len(paths) == 4 and all(not tensors[key].any() for key in paths)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"modules_to_save": ("lm_head",)}, "whole"),
        ({"target_modules": ("c_attn",), "bias": "lora_only"}, "whole"),
        ({"target_modules": ("wte", "c_attn")}, "transformer.wte"),
        ({"target_modules": ("q_proj", "lm_head")}, "lm_head"),
    ],
    ids=str,
)
def test_what_cannot_be_portable_is_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = gpt2() if "c_attn" in settings.get("target_modules", ()) else llama()
    inject(model, AdapterConfig(r=4, **settings), seed=1)
    save_adapter(model, tmp_path / "one")
    with pytest.raises(AdapterError, match=words) as caught:
        export_portable(tmp_path / "one", tmp_path / "out")
    assert "Merge it" in caught.value.fix and not (tmp_path / "out").exists()


class Scaled(LoRA):
    """Like DoRA: the change depends on the weight, and is not of low rank."""

    def merge_block(self, block: torch.Tensor, rows: slice) -> torch.Tensor:
        size = 1 + 0.3 * torch.arange(block.shape[0], dtype=block.dtype)[:, None]
        return size * (block + self.delta_weight(rows, block.dtype))


@pytest.mark.parametrize("r", [None, 9, 16])
def test_a_change_that_is_no_product_becomes_the_closest_one(
    r: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = llama()
    base.save_pretrained(tmp_path / "base")
    config = AdapterConfig(method="lora_drop", r=4, lora_alpha=6.0, target_modules=("q_proj", "down_proj"))
    monkeypatch.setitem(adapters._items, "lora_drop", Scaled)
    inject(base, config, seed=1)
    shake(base)
    save_adapter(base, tmp_path / "one")
    with pytest.raises(AdapterError, match="its base model"):
        export_portable(tmp_path / "one", tmp_path / "two")
    found = export_portable(tmp_path / "one", tmp_path / "two", base=tmp_path / "base", r=r)
    assert found.rank == (r or 4)
    twin = llama()
    load_adapter(twin, tmp_path / "two")
    for path, host in adapters_of(base).hosts.items():
        weight = host.base_layer.weight.detach().double()
        adapter = host.adapter("default")
        assert isinstance(adapter, Adapter)
        change = adapter.merge_block(weight, ALL_ROWS) - weight
        kept = adapters_of(twin).hosts[path].adapter("default").delta_weight()
        values = torch.linalg.svdvals(change)
        closest = float(values[found.rank :].norm() / values.norm())
        assert found.losses[path] == pytest.approx(closest, abs=1e-6)
        assert float((change - kept).norm() / change.norm()) == pytest.approx(closest, abs=1e-5)
    assert (max(found.losses.values()) > 0.05) == (r != 16)


def test_r_cuts_what_is_higher(tmp_path: Path) -> None:
    model = llama()
    inject(model, AdapterConfig(r=6, target_modules=("q_proj",), rank_pattern={"layers.0.self_attn.q_proj": 2}))
    shake(model)
    save_adapter(model, tmp_path / "one")
    found = export_portable(tmp_path / "one", tmp_path / "two", r=3)
    expected = []
    for path in found.losses:
        values = np.linalg.svd(adapters_of(model).hosts[path].adapter("default").delta_weight().numpy())[1]
        expected.append(np.linalg.norm(values[3:]) / np.linalg.norm(values))
    assert list(found.losses.values()) == pytest.approx(expected, abs=1e-12)
    assert found.rank == 3 and found.losses["model.layers.0.self_attn.q_proj"] == 0
