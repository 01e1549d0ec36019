"""Loading a base quantised, what the adapter's folder says of it, merging, and the memory it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from core.adapters import inject, merge
from core.config import AdapterConfig, TrainConfig
from core.errors import AdapterError, ConfigError
from core.export.method_file import read_method, read_quantization
from core.export.peft import load_adapter, save_adapter
from core.memory import estimate_memory
from core.merge import merge_to_folder, verify_merge
from core.models import ModelInfo, Target, inspect_model, load_model, stored_dtype
from core.quantize.linear import LAYERS, QuantizedLinear
from tests.core.adapters.tiny import gpt2, llama, logits, shake, tokens
from tests.core.toy import toy_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
KINDS = pytest.mark.parametrize("kind", LAYERS)
FAMILIES = pytest.mark.parametrize("make", [llama, gpt2])


def save_base(folder: Path, make: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Path:
    make().to(dtype).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def trained(folder: Path, make: Callable[[], Any], kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """Base and adapter in a folder; returns the adapted, quantised model."""
    model, _ = load_model(save_base(folder / "base", make, dtype), "float32", "cpu", quantization=kind)
    inject(model, AdapterConfig(r=4, lora_alpha=8.0), seed=0)
    shake(model, size=0.1)
    save_adapter(model, folder / "adapter")
    return model


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).float().eval()


@KINDS
@FAMILIES
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_loaded_model_is_quantised_frozen_and_as_large_as_estimated(
    kind: str, make: Callable[[], Any], stored: torch.dtype, tmp_path: Path
) -> None:
    model, _ = load_model(save_base(tmp_path, make, stored), "float32", "cpu", quantization=kind)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    packed = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    assert all(layer.kind == kind and layer.dtype == torch.float32 for layer in packed) and packed
    size = sum(p.nbytes for p in model.parameters()) + sum(layer.weight_bytes for layer in packed)
    estimate = estimate_memory(inspect_model(tmp_path), TrainConfig(quantization=kind), 1, 8, "float32")
    assert estimate["weights"] == size
    assert (logits(model, tokens()) - logits(plain(tmp_path), tokens())).abs().max() < 0.1


def test_buffers_stay_precise_when_the_rest_is_narrowed(tmp_path: Path) -> None:
    model, _ = load_model(save_base(tmp_path, llama), "bfloat16", "cpu", quantization="nf4")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert stored_dtype(tmp_path) == "float32"


def test_the_weights_are_quantised_as_the_files_have_them(tmp_path: Path) -> None:
    """Not after a cast to the dtype that they compute in."""
    exact, _ = load_model(save_base(tmp_path, llama), "float32", "cpu", quantization="nf4")
    narrow, _ = load_model(tmp_path, "bfloat16", "cpu", quantization="nf4")
    for one, other in zip(exact.modules(), narrow.modules(), strict=True):
        if isinstance(one, QuantizedLinear) and isinstance(other, QuantizedLinear):
            assert torch.equal(one.dequantize(torch.float32), other.dequantize(torch.float32))


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp4"):
        load_model(save_base(tmp_path, llama), device="cpu", quantization="fp4")
    with pytest.raises(ConfigError, match="fp4"):
        TrainConfig(quantization="fp4")


@KINDS
@FAMILIES
def test_merged_into_the_trained_base_says_what_it_said_in_training(
    kind: str, make: Callable[[], Any], tmp_path: Path
) -> None:
    expected = logits(trained(tmp_path, make, kind), tokens())
    merged = merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert (logits(plain(merged), tokens()) - expected).abs().max() <= 1e-5
    check = verify_merge(tmp_path / "base", tmp_path / "adapter", merged)
    assert check.max_logit_difference <= 1e-5 and check.unrounded_difference <= 1e-5
    assert f"the values of the {kind} base" in (merged / "README.md").read_text(encoding="utf-8")


@KINDS
def test_merged_into_the_files_weights_is_another_model_and_says_by_how_much(kind: str, tmp_path: Path) -> None:
    model = trained(tmp_path, llama, kind)
    folders = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    merged = merge_to_folder(*folders, base_precision="16-bit")
    dense = plain(tmp_path / "base")
    load_adapter(dense, tmp_path / "adapter")
    assert (logits(plain(merged), tokens()) - logits(dense, tokens())).abs().max() <= 1e-5
    check = verify_merge(*folders, base_precision="16-bit")
    assert check.unrounded_difference <= 1e-5  # merged rightly, only into another base
    assert check.max_logit_difference > {"nf4": 1e-3, "int8": 1e-4}[kind]
    packed = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    originals = [dense.get_submodule(name) for name, m in model.named_modules() if isinstance(m, QuantizedLinear)]
    values = torch.cat([layer.dequantize(torch.float32).view(-1) for layer in packed])
    weights = torch.cat([layer.weight.detach().reshape(-1) for layer in originals if isinstance(layer, nn.Module)])
    difference = float((values - weights).norm() / values.norm())
    assert f"{difference:.2%} apart" in (merged / "README.md").read_text(encoding="utf-8")


def test_bfloat16_files_are_rounded_once(tmp_path: Path) -> None:
    """The merge in memory, in float32, rounded to bfloat16 is what the folder has."""
    model = trained(tmp_path, llama, "nf4", torch.bfloat16)
    merge(model)
    merged = merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    found = AutoModelForCausalLM.from_pretrained(merged, dtype="auto")
    expected = model.model.layers[0].mlp.up_proj.base_layer.weight
    difference = (found.model.layers[0].mlp.up_proj.weight.float() - expected).abs()
    assert found.dtype == torch.bfloat16 and (difference <= expected.abs() * 2**-8).all()
    assert verify_merge(tmp_path / "base", tmp_path / "adapter", merged).unrounded_difference < 1e-4


def test_a_plain_adapter_can_be_merged_into_a_quantised_base(tmp_path: Path) -> None:
    trained(tmp_path, llama, "none")
    assert read_quantization(tmp_path / "adapter") == "none"
    folders = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    merge_to_folder(*folders, base_precision="nf4")
    check = verify_merge(*folders, base_precision="nf4")
    assert check.unrounded_difference <= 1e-5 < check.max_logit_difference
    with pytest.raises(ConfigError, match="fp4"):
        merge_to_folder(*folders[:2], tmp_path / "other", base_precision="fp4")


@KINDS
@FAMILIES
def test_the_adapters_folder_says_what_it_was_trained_on(kind: str, make: Callable[[], Any], tmp_path: Path) -> None:
    """And stays one that PEFT, and a base in 16 bits, can use."""
    trained(tmp_path, make, kind)
    assert read_quantization(tmp_path / "adapter") == kind and read_method(tmp_path / "adapter") is None
    dense = plain(tmp_path / "base")
    expected = logits(dense, tokens())
    assert load_adapter(dense, tmp_path / "adapter")
    from peft import PeftModel

    theirs = PeftModel.from_pretrained(plain(tmp_path / "base"), tmp_path / "adapter").eval()
    found = logits(dense, tokens())
    assert (found - expected).abs().max() > 1e-3 and (found - logits(theirs, tokens())).abs().max() < 1e-5


def test_a_damaged_note_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, llama, "nf4")
    (tmp_path / "adapter" / "method.json").write_text('{"quantization": "fp4"}', encoding="utf-8")
    with pytest.raises(AdapterError, match="fp4"):
        merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


def test_estimate_of_a_13b_model() -> None:
    """Llama 2 13B: 12.7 of its 13.0 billion weights are in linear layers, and take 6.5 GB instead of 25."""
    shapes = {"attn": [(5120, 5120)] * 160, "mlp": [(5120, 13824)] * 80 + [(13824, 5120)] * 40}
    targets = tuple(Target(name, "mlp", tuple(found), (name,) * len(found)) for name, found in shapes.items())
    linear = sum(target.parameters for target in targets)
    rest = 2 * 32_000 * 5120
    info = ModelInfo(
        folder=Path(), architecture="", model_type="llama", parameters=linear + rest, dtype="bfloat16",
        context_length=4096, hidden_size=5120, intermediate_size=13824, layers=40, heads=40, vocab_size=32_000,
        has_chat_template=False, tied_embeddings=False, licence="", size_bytes=0, targets=targets,
    )  # fmt: skip
    plain, nf4 = (estimate_memory(info, TrainConfig(quantization=kind), 1, 128) for kind in ("none", "nf4"))
    assert nf4["weights"] == pytest.approx(linear * 4.127 / 8 + 2 * rest, rel=1e-3)
    assert plain["weights"] == 2 * (linear + rest)
    assert nf4["activations"] - plain["activations"] == 2 * 13824 * 5120  # one layer is unpacked at a time
