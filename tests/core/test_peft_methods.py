"""Methods beside LoRA against peft 0.21 itself, in files of both: logits and the gradient of every trained tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, VeraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from safetensors.torch import load_file

from core.adapters import adapter_state_dict, inject, training_rule
from core.adapters.state import live_tensors
from core.config import AdapterConfig
from core.export.peft import load_adapter, read_adapter_config, save_adapter
from tests.core.adapters.tiny import bart, bert, forward, gpt2, llama, logits, qwen3, shake, t5, tokens
from tests.core.test_peft_files import compare

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # peft's advice on where it saves

ONE = {"target_modules": ["q_proj", "down_proj"]}
TURNED = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
STEPS = {"total_step": 10, "init_r": 4, "target_r": 2}
CASES: dict[str, tuple[Callable[[], Any], type, dict[str, Any]]] = {
    "dora llama": (llama, LoraConfig, {"use_dora": True, "r": 4, "lora_alpha": 6, **ONE}),
    "dora gpt2": (gpt2, LoraConfig, {"use_dora": True, "use_rslora": True, "r": 4, **TURNED}),
    "dora patterns": (llama, LoraConfig, {"use_dora": True, "r": 4, "rank_pattern": {"q_proj": 2}, **ONE}),
    "dora qwen3": (qwen3, LoraConfig, {"use_dora": True, "r": 2, "target_modules": "all-linear"}),
    "dora t5": (t5, LoraConfig, {"use_dora": True, "r": 2, "target_modules": ["q", "v"]}),
    "dora bert": (bert, LoraConfig, {"use_dora": True, "r": 2, "target_modules": ["query"], "task_type": "SEQ_CLS"}),
    "vera llama": (llama, VeraConfig, {"r": 8, **ONE}),
    "vera by its seed": (llama, VeraConfig, {"r": 8, "save_projection": False, "projection_prng_key": 7, **ONE}),
    "vera gpt2": (gpt2, VeraConfig, {"r": 8, **TURNED}),
    "vera bart": (bart, VeraConfig, {"r": 8, "target_modules": ["q_proj", "fc1"], "bias": "vera_only"}),
    "adalora llama": (llama, AdaLoraConfig, {**STEPS, **ONE}),
    "adalora gpt2": (gpt2, AdaLoraConfig, {**STEPS, **TURNED}),
    "adalora bart": (bart, AdaLoraConfig, {**STEPS, "target_modules": ["v_proj", "out_proj"]}),
}
BIAS = {"vera bart"}  # where peft trains biases under a name of its own


@pytest.mark.parametrize("case", [case for case in CASES if case not in BIAS])
def test_peft_to_ours(case: str, tmp_path: Path) -> None:
    make, kind, settings = CASES[case]
    model = get_peft_model(make().double(), kind(**settings)).eval()
    _shake_peft(model)
    model.save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(make().double(), tmp_path, is_trainable=True).eval()
    ours = make().double()
    base = logits(ours, tokens())
    load_adapter(ours, tmp_path)
    assert (logits(ours, tokens()) - base).abs().max() > 1e-4, "the adapter does nothing, so the test shows nothing"
    compare(ours, theirs, 1e-6 if case.startswith("vera") else 1e-10)  # VeRA's projections are float32 in its files


def _shake_peft(model: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "ranknum" not in name:  # AdaLoRA's, which is part of the scale
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (llama, {"method": "dora", "r": 4, "target_modules": ("q_proj", "down_proj")}),
        (gpt2, {"method": "dora", "r": 4, "target_modules": ("c_attn",)}),
        (llama, {"method": "vera", "r": 8, "target_modules": ("q_proj", "down_proj")}),
        (gpt2, {"method": "vera", "r": 8, "method_options": {"save_projection": False, "projection_prng_key": 3}}),
        (llama, {"method": "adalora", "r": 4, "lora_alpha": 6.0}),
        (gpt2, {"method": "adalora", "r": 4, "target_modules": ("c_attn", "c_fc")}),
        (llama, {"method": "lora_plus", "r": 4}),
        (llama, {"method": "lora_fa", "r": 4}),
    ],
    ids=lambda value: value["method"] if isinstance(value, dict) else value.__name__,
)
def test_ours_to_peft(make: Callable[[], Any], settings: dict[str, Any], tmp_path: Path) -> None:
    ours = make().double()
    inject(ours, AdapterConfig(**settings), seed=0)
    shake(ours, size=0.1)
    save_adapter(ours, tmp_path)
    theirs = PeftModel.from_pretrained(make().double(), tmp_path, is_trainable=True).eval()
    if settings["method"] == "lora_fa":  # peft trains it by an optimizer, and the file is LoRA's
        assert (logits(ours, tokens()) - logits(theirs, tokens())).abs().max() <= 1e-10
    else:
        compare(ours, theirs, 1e-6 if settings["method"] == "vera" else 1e-10)
    (tmp_path / "method.json").unlink()  # what peft's own files do not have
    if settings["method"] not in ("lora_plus", "lora_fa"):
        twin = make().double()
        load_adapter(twin, tmp_path)
        assert torch.equal(logits(twin, tokens()), logits(ours, tokens()))
        assert read_adapter_config(tmp_path).method == settings["method"]


def test_directions_that_peft_cut_are_zeros_here(tmp_path: Path) -> None:
    """peft leaves out the rows of cut triplets; the rank at the start still sets the scale."""
    model = get_peft_model(llama().double(), AdaLoraConfig(**STEPS, **ONE)).eval()
    _shake_peft(model)
    kept = [True, False, True, False]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_E" in name:
                parameter *= torch.tensor(kept)[:, None]
    names = [name.removeprefix("base_model.model.") for name, _ in model.named_parameters() if "lora_E" in name]
    model.peft_config["default"].rank_pattern = dict.fromkeys(names, kept)
    expected = logits(model, tokens())
    model.save_pretrained(tmp_path)
    assert {
        len(value) for key, value in load_file(tmp_path / "adapter_model.safetensors").items() if "lora_E" in key
    } == {2}
    ours = llama().double()
    load_adapter(ours, tmp_path)
    assert (logits(ours, tokens()) - expected).abs().max() < 1e-10
    assert {len(value) for key, value in adapter_state_dict(ours).items() if "lora_E" in key} == {4}


def test_the_corrected_step_of_lora_fa_is_pefts(tmp_path: Path) -> None:
    """One step of peft's LoRA-FA optimizer from the same gradient: B moves as Adam moves along ours, and A stays."""
    ours = llama().double()
    inject(ours, AdapterConfig(method="lora_fa", r=4, lora_alpha=8.0, target_modules=("q_proj",)), seed=0)
    save_adapter(ours, tmp_path)
    theirs = PeftModel.from_pretrained(llama().double(), tmp_path, is_trainable=True)
    optimizer = create_lorafa_optimizer(theirs, r=4, lora_alpha=8, lr=1e-3)
    before = {name: p.detach().clone() for name, p in theirs.named_parameters() if p.requires_grad}
    for model in (ours, theirs):
        forward(model, tokens()).square().sum().backward()
    optimizer.step()
    moved = {name: p.detach() - before[name] for name, p in theirs.named_parameters() if name in before}
    assert not any(change.any() for name, change in moved.items() if "lora_A" in name)
    training_rule(ours, "default", 10).before_update(1)
    found = {key: tensor.grad for key, tensor in live_tensors(ours, "default").items() if "lora_B" in key}
    assert len(found) == 2
    for key, gradient in found.items():
        assert gradient is not None
        step = moved[key.replace(".weight", ".default.weight")]
        epsilon = 1e-6 / (1 - 0.999) ** 0.5  # peft adds it before the bias correction; its product is in bfloat16
        torch.testing.assert_close(step, -1e-3 * gradient / (gradient.abs() + epsilon), atol=1e-6, rtol=0.02)
