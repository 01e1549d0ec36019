"""Models whose files have other tensors than the model has parameters: merged, and read by plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.adapters import inject, merge
from core.config import AdapterConfig
from core.errors import AdapterError
from core.export.peft import save_adapter
from core.merge import merge_to_folder, verify_merge
from core.merge_plan import plan_merge
from core.model_config import read_config
from core.skeleton import make_skeleton
from tests.core.adapters.tiny import granite_moe, logits, mixtral, neox, qwen2_moe, qwen3_moe, shake, tokens

EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
MODELS: dict[str, Callable[[], Any]] = {
    make.__name__: make for make in (mixtral, qwen2_moe, qwen3_moe, granite_moe, neox)
}
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "partial": {"method": "partial", "method_options": {"part": "last_blocks", "blocks": 1}},
    "experts": {"r": 2, "target_modules": ("q_proj",), "target_parameters": EXPERTS},
    "head saved": {"r": 2, "modules_to_save": ("lm_head",)},
    "head adapted": {"r": 2, "target_modules": ("lm_head",)},
}
CASES = [(model, case) for model in MODELS for case in SETTINGS if (model, case) != ("neox", "experts")]


def prepared(folder: Path, model: str, case: str, dtype: torch.dtype = torch.float32, **saving: Any) -> Any:
    """Write base and adapter into a folder; returns the adapted model, loaded as the base was saved."""
    MODELS[model]().to(dtype).save_pretrained(folder / "base", **saving)
    loaded = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype).eval()
    inject(loaded, AdapterConfig(**SETTINGS[case]), seed=0)
    shake(loaded, size=0.1)
    save_adapter(loaded, folder / "adapter")
    return loaded


def shapes(folder: Path) -> dict[str, dict[str, list[int]]]:
    """The tensors of all files of a model, with their shapes."""
    found: dict[str, dict[str, list[int]]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found[path.name] = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return found


def read_plainly(folder: Path) -> Any:
    plain, report = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(report.values()), report
    return plain.eval()


@pytest.mark.parametrize(("model", "case"), CASES)
def test_a_merged_folder_has_the_bases_tensors_and_the_adapters_logits(model: str, case: str, tmp_path: Path) -> None:
    expected = logits(prepared(tmp_path, model, case), tokens())
    folder = merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert shapes(folder) == shapes(tmp_path / "base")
    assert (logits(read_plainly(folder), tokens()) - expected).abs().max() < 1e-5
    assert verify_merge(tmp_path / "base", tmp_path / "adapter", folder).max_logit_difference < 1e-4


@pytest.mark.parametrize("model", ["mixtral", "qwen3_moe"])
def test_experts_in_several_files_are_the_merge_in_memory_bit_for_bit(model: str, tmp_path: Path) -> None:
    adapted = prepared(tmp_path, model, "experts", torch.bfloat16, max_shard_size="2KB")
    before = shapes(tmp_path / "base")
    homes = {path for path, names in before.items() if any(".layers.1." in n and ".experts." in n for n in names)}
    assert len(homes) > 1
    merge(adapted)
    folder = merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert shapes(folder) == before
    expected = {name.replace(".base_layer", ""): value for name, value in adapted.state_dict().items()}
    for name, value in read_plainly(folder).state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("model", ["mixtral", "qwen3_moe", "neox"])
def test_files_without_the_bodys_name_and_wider_numbers(model: str, tmp_path: Path) -> None:
    adapted = prepared(tmp_path, model, "full", torch.bfloat16)
    path = tmp_path / "base" / "model.safetensors"
    body = f"{adapted.base_model_prefix}."
    save_file({name.removeprefix(body): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    folder = merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", dtype="float32")
    assert shapes(folder) == shapes(tmp_path / "base")
    expected = logits(adapted.float(), tokens())
    plain = read_plainly(folder)
    assert plain.dtype == torch.float32 and (logits(plain, tokens()) - expected).abs().max() < 1e-5


def test_files_that_have_the_names_of_the_model(tmp_path: Path) -> None:
    """transformers writes those with `save_original_format=False`."""
    expected = logits(prepared(tmp_path, "mixtral", "full", save_original_format=False), tokens())
    assert "model.layers.0.mlp.experts.down_proj" in shapes(tmp_path / "base")["model.safetensors"]
    folder = merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert shapes(folder) == shapes(tmp_path / "base")
    assert (logits(read_plainly(folder), tokens()) - expected).abs().max() < 1e-5


def test_experts_of_which_one_is_missing_are_refused(tmp_path: Path) -> None:
    prepared(tmp_path, "mixtral", "experts")
    path = tmp_path / "base" / "model.safetensors"
    lost = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    save_file({name: tensor for name, tensor in load_file(path).items() if name != lost}, path, {"format": "pt"})
    with pytest.raises(AdapterError, match="transformers does not say how to write them again"):
        merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_is_read_as_transformers_reads_it(model: str, tmp_path: Path) -> None:
    loaded = prepared(tmp_path, model, "full", max_shard_size="2KB")
    base = tmp_path / "base"
    skeleton = make_skeleton(read_config(base), base)
    names = list(skeleton.state_dict())
    plan = plan_merge(skeleton, base, tmp_path / "adapter", "merged")
    plain = {name.replace(".base_layer", ""): value for name, value in loaded.state_dict().items()}
    for name in names:
        source = plan.find(name)
        assert source is not None and torch.equal(plan.read(source), plain[name]), name
