"""Merged folders in plain transformers, against base and adapter; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.adapters import inject, merge
from core.config import AdapterConfig
from core.errors import AdapterError, ConfigError, DiskFullError
from core.export.huggingface import TensorEntry, write_safetensors
from core.export.peft import save_adapter
from core.merge import merge_to_folder, verify_merge
from tests.core.adapters.tiny import VOCABULARY, gpt2, llama, logits, shake, tokens

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def tied_llama() -> Any:
    return llama(tie_word_embeddings=True)


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any], bool]] = {  # model, settings, embeddings still tied
    "llama": (llama, {}, False),
    "tied llama": (tied_llama, {}, True),
    "tied, embedding adapted": (tied_llama, {"target_modules": ("embed_tokens", "q_proj")}, False),
    "tied, head adapted": (tied_llama, {"target_modules": ("lm_head", "q_proj")}, False),
    "tied, both adapted": (tied_llama, {"target_modules": ("lm_head", "embed_tokens")}, False),
    "tied, head saved": (tied_llama, {"modules_to_save": ("lm_head",)}, False),
    "tied, both saved": (tied_llama, {"modules_to_save": ("lm_head", "embed_tokens")}, False),
    "norm saved": (llama, {"modules_to_save": ("model.norm",)}, False),
    "gpt2": (gpt2, {}, True),
    "gpt2 square layer": (gpt2, {"target_modules": ("attn.c_proj",)}, True),
    "gpt2 biases": (gpt2, {"bias": "all"}, True),
    "gpt2 embeddings": (gpt2, {"target_modules": ("wte", "wpe", "c_attn")}, False),
    "rslora": (llama, {"method": "rslora", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 1.0}}, False),
}


def prepared(folder: Path, case: str = "llama", dtype: torch.dtype = torch.float32, **saving: Any) -> Any:
    """Write base and adapter into a folder; returns the adapted model, loaded as the base was saved."""
    make, settings, _ = CASES[case]
    make().to(dtype).save_pretrained(folder / "base", **saving)
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype).eval()
    inject(model, AdapterConfig(**{"r": 4, "lora_alpha": 8.0, **settings}), seed=0)
    shake(model, size=0.1)
    save_adapter(model, folder / "adapter")
    return model


def merged(folder: Path, **options: Any) -> Path:
    return merge_to_folder(folder / "base", folder / "adapter", folder / "merged", **options)


@pytest.mark.parametrize("case", CASES)
def test_plain_transformers_gives_the_adapters_logits(case: str, tmp_path: Path) -> None:
    model = prepared(tmp_path, case)
    expected = logits(model, tokens())
    plain, report = AutoModelForCausalLM.from_pretrained(merged(tmp_path), output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert (logits(plain.eval(), tokens()) - expected).abs().max() < 1e-5
    assert plain.config.tie_word_embeddings == CASES[case][2]
    ends = plain.get_input_embeddings().weight, plain.get_output_embeddings().weight
    assert (ends[0].data_ptr() == ends[1].data_ptr()) == CASES[case][2]


@pytest.mark.parametrize("case", ["llama", "tied, embedding adapted", "gpt2 biases"])
def test_bf16_folder_is_the_merge_in_memory_bit_for_bit(case: str, tmp_path: Path) -> None:
    model = prepared(tmp_path, case, torch.bfloat16)
    merge(model)
    plain = AutoModelForCausalLM.from_pretrained(merged(tmp_path), dtype="auto")
    assert plain.dtype == torch.bfloat16
    expected = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    for name, value in plain.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_float32_on_request_keeps_what_rounding_would_lose(tmp_path: Path) -> None:
    model = prepared(tmp_path, dtype=torch.bfloat16).float()
    expected = logits(model, tokens())
    folder = merged(tmp_path, dtype="float32")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    assert plain.dtype == torch.float32 and (logits(plain, tokens()) - expected).abs().max() < 1e-5
    with pytest.raises(ConfigError, match="float8"):
        merged(tmp_path, dtype="float8")


def test_several_shards_stay_several(tmp_path: Path) -> None:
    model = prepared(tmp_path, max_shard_size="8KB")
    names = sorted(path.name for path in (tmp_path / "base").glob("*.safetensors"))
    assert len(names) > 2
    calls: list[tuple[int, int]] = []
    folder = merged(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert sorted(path.name for path in folder.glob("*.safetensors")) == names
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    total = sum(tensor.nbytes for name in names for tensor in load_file(folder / name).values())
    assert index["metadata"]["total_size"] == total and set(index["weight_map"].values()) == set(names)
    assert calls == [(number, len(calls)) for number in range(1, len(index["weight_map"]) + 1)]
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert (logits(plain, tokens()) - logits(model, tokens())).abs().max() < 1e-5


def test_a_checkpoint_without_the_bodys_name_in_front(tmp_path: Path) -> None:
    """The original GPT-2 files say `h.0.attn...`; an untied head stands beside them."""
    model = prepared(tmp_path, "gpt2 embeddings")
    path = tmp_path / "base" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): value for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    plain, report = AutoModelForCausalLM.from_pretrained(merged(tmp_path), output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert (logits(plain.eval(), tokens()) - logits(model, tokens())).abs().max() < 1e-5


def test_companions_travel_and_the_config_is_clean(tmp_path: Path) -> None:
    prepared(tmp_path)
    base = tmp_path / "base"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE", "evil.py", "notes.txt"):
        (base / name).write_text(f'"{name}"', encoding="utf-8")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "_name_or_path": "~/private/base"}), encoding="utf-8")
    folder = merged(tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"),
        *("config.json", "generation_config.json", "model.safetensors", "README.md"),
    }
    assert "private" not in (folder / "config.json").read_text(encoding="utf-8")
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_same_merge_gives_the_same_bytes(tmp_path: Path) -> None:
    prepared(tmp_path)
    first = merged(tmp_path)
    second = merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "again")
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}


def test_nothing_is_left_of_a_merge_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merged(tmp_path, progress=stop)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(import_module("core.merge"), "copy_companions", Mock(side_effect=full))
    with pytest.raises(DiskFullError, match="became full"):
        merged(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DiskFullError, match="are needed"):
        merged(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_what_is_refused(tmp_path: Path) -> None:
    prepared(tmp_path)
    merged(tmp_path)
    with pytest.raises(AdapterError, match="exists already"):
        merged(tmp_path)
    other = llama(hidden_size=32)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(AdapterError, match=r"\(4, 16\) instead of \(4, 32\)"):
        merge_to_folder(tmp_path / "other", tmp_path / "adapter", tmp_path / "x")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    save_file({f"renamed.{name}": value for name, value in tensors.items()}, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"no tensor for 'model\.layers\.0\.self_attn\.q_proj\.weight'"):
        merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "x")
    save_file({name: value[:3] for name, value in tensors.items()}, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="has shape"):
        merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_stored_embedding_of_another_base_is_refused(tmp_path: Path) -> None:
    prepared(tmp_path, "tied, embedding adapted")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    own = load_file(tmp_path / "base" / "model.safetensors")["model.embed_tokens.weight"]
    save_file({**tensors, key: own + 1}, path)
    with pytest.raises(AdapterError, match="brings its own base weight"):
        merged(tmp_path)
    save_file({**tensors, key: own}, path)
    assert merged(tmp_path).is_dir()


def test_verify_measures_a_right_merge(tmp_path: Path) -> None:
    prepared(tmp_path)
    check = verify_merge(tmp_path / "base", tmp_path / "adapter", merged(tmp_path), [[1, 2, 3], [4, 5]])
    assert check.tokens == 5 and check.dtype == "float32" and check.top1_agreement == 1.0
    assert check.max_logit_difference < 1e-5 and check.unrounded_difference < 1e-5 and 0 <= check.kl_divergence < 1e-9


def test_verify_tells_rounding_from_a_wrong_merge(tmp_path: Path) -> None:
    prepared(tmp_path, dtype=torch.bfloat16)
    folder = merged(tmp_path)
    right = verify_merge(tmp_path / "base", tmp_path / "adapter", folder)
    assert right.unrounded_difference < 1e-5 < 1e-4 < right.max_logit_difference < 0.05
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] += 0.05
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert verify_merge(tmp_path / "base", tmp_path / "adapter", folder).unrounded_difference > 1e-3
    with pytest.raises(ConfigError, match="is empty"):
        verify_merge(tmp_path / "base", tmp_path / "adapter", folder, [[]])


def test_our_safetensors_are_read_by_the_library(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
        "b": torch.tensor(3.5),
        "c": torch.arange(3),
        "d": torch.zeros(0, 4),
        "e": torch.eye(3)[:, 1:],
    }
    entries = [TensorEntry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    write_safetensors(tmp_path / "x.safetensors", entries, tensors.values())
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert all(found[name].dtype == tensor.dtype for name, tensor in tensors.items())
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    with pytest.raises(ValueError, match="not as announced"):
        write_safetensors(tmp_path / "y.safetensors", entries[:1], [torch.zeros(2)])


def test_the_vocabulary_of_the_tiny_models() -> None:
    assert llama().config.vocab_size == gpt2().config.vocab_size == VOCABULARY
