"""LoRA on the experts of a mixture, which are one 3-D parameter: against peft, and against the formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import OPTConfig, OPTForCausalLM

from core.adapters import adapter_parameters, adapter_rows, inject, merge, set_adapter, unmerge
from core.config import AdapterConfig
from core.errors import ConfigError
from core.export.peft import load_adapter, save_adapter
from tests.core.adapters import tiny
from tests.core.adapters.tiny import llama, logits, shake, tokens

EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def mixtral() -> Any:
    return tiny.mixtral().double()


def eager(model: Any) -> Any:
    """In float64, which the grouped product of the experts does not have."""
    model.set_experts_implementation("eager")
    return model.double()


def opt() -> Any:
    torch.manual_seed(0)
    config = OPTConfig(
        hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=tiny.VOCABULARY,
        max_position_embeddings=32, word_embed_proj_dim=16, do_layer_norm_before=True,
    )  # fmt: skip
    return OPTForCausalLM(config).double().eval()


def adapted(parameters: tuple[str, ...] = EXPERTS, targets: str | tuple[str, ...] = ("q_proj",), **more: Any) -> Any:
    model = mixtral()
    config = AdapterConfig(r=2, lora_alpha=8.0, target_modules=targets, target_parameters=parameters, **more)
    inject(model, config, seed=1)
    return model


def test_starts_as_the_base_and_learns_with_every_tensor() -> None:
    model = adapted()
    assert torch.equal(logits(model, tokens()), logits(mixtral(), tokens()))
    shake(model)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    gradients = [parameter.grad for parameter in adapter_parameters(model)]
    assert len(gradients) == 2 * (1 + 2) * 2 and all(g is not None and g.abs().sum() > 0 for g in gradients)


def test_an_adapter_of_all_layers_and_experts_loads_again(tmp_path: Path) -> None:
    model, other = adapted(targets="all-linear"), mixtral()
    shake(model)
    save_adapter(model, tmp_path / "saved")
    load_adapter(other, tmp_path / "saved")
    assert torch.equal(logits(other, tokens()), logits(model, tokens()))


def test_each_expert_has_its_own_pair() -> None:
    model, base = adapted(targets=()), mixtral()
    shake(model)
    for path, host in ((f"model.layers.{n}.mlp.experts", model.model.layers[n].mlp.experts) for n in range(2)):
        for key in ("gate_up_proj", "down_proj"):
            part = host.adapter("default").part(key)
            weight = base.get_parameter(f"{path}.{key}")
            with torch.no_grad():
                for e in range(3):
                    a, b = part.lora_A[2 * e : 2 * e + 2], part.lora_B[:, e::3]
                    weight[e] += 8.0 / 2 * b @ a
    torch.testing.assert_close(logits(model, tokens()), logits(base, tokens()), atol=1e-12, rtol=0)


def test_merged_is_unmerged_and_back() -> None:
    model = adapted()
    shake(model)
    expected, before = logits(model, tokens()), model.model.layers[0].mlp.experts.down_proj.clone()
    merge(model)
    torch.testing.assert_close(logits(model, tokens()), expected, atol=1e-12, rtol=0)
    unmerge(model)
    assert torch.equal(model.model.layers[0].mlp.experts.down_proj, before)


def test_several_adapters_add_up() -> None:
    model = adapted()
    inject(model, AdapterConfig(r=1, target_modules=(), target_parameters=EXPERTS[:1]), name="other", seed=2)
    shake(model, "default")
    shake(model, "other", seed=3)
    set_adapter(model, ["default", "other"])
    expected = logits(model, tokens())
    merge(model)
    torch.testing.assert_close(logits(model, tokens()), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_equals_peft(tmp_path: Path, use_rslora: bool) -> None:
    """Logits and every gradient, from a file of ours read by peft and from one of peft read by us."""
    model = adapted(use_rslora=use_rslora)
    shake(model)
    save_adapter(model, tmp_path / "ours")
    theirs = PeftModel.from_pretrained(mixtral(), str(tmp_path / "ours"), is_trainable=True)
    _same(model, theirs)
    config = LoraConfig(
        r=2, lora_alpha=8, target_modules=["q_proj"], target_parameters=list(EXPERTS), use_rslora=use_rslora,
        init_lora_weights=False, task_type="CAUSAL_LM",
    )  # fmt: skip
    made = get_peft_model(mixtral(), config)
    made.save_pretrained(str(tmp_path / "theirs"))
    loaded = mixtral()
    load_adapter(loaded, tmp_path / "theirs")
    set_adapter(loaded, "default")
    _same(loaded, made)


def _same(ours: Any, theirs: Any) -> None:
    for model in (ours, theirs):
        model.zero_grad()
        model(input_ids=tokens(), labels=tokens()).loss.backward()
    torch.testing.assert_close(logits(ours, tokens()), logits(theirs, tokens()), atol=1e-10, rtol=0)
    own = sorted(float(p.grad.norm()) for p in adapter_parameters(ours))
    peft = sorted(float(p.grad.norm()) for p in theirs.parameters() if p.grad is not None)
    assert own == pytest.approx(peft, abs=1e-10)


ROWS = ["experts", None, "other", "whole", "experts"]


@pytest.mark.parametrize("make", [mixtral, lambda: eager(tiny.qwen2_moe()), lambda: eager(tiny.granite_moe()), opt])
@pytest.mark.parametrize("length", [1, 4, 5])
def test_rows_of_one_batch_with_adapters_of_their_own(make: Any, length: int) -> None:
    """A mixture shows its experts, and OPT its feed-forward layers, all tokens of all rows end to end."""
    model = make()
    experts = [] if model.config.model_type == "opt" else [f"experts.{key}" for key in ("gate_up_proj", "down_proj")]
    settings: dict[str, dict[str, Any]] = {
        "experts": {"r": 2, "target_parameters": tuple(experts)},
        "other": {"r": 1, "lora_alpha": 1.0, "target_modules": "all-linear"},
        "whole": {"method": "full"},
    }
    for seed, (name, own) in enumerate(settings.items()):
        inject(model, AdapterConfig(**own), name, seed=seed)
        shake(model, name, size=0.3, seed=seed)
    ids = tokens(len(ROWS), length)
    want = []
    for row, name in enumerate(ROWS):
        set_adapter(model, name)
        want.append(logits(model, ids[row : row + 1]))
    with adapter_rows(model, ROWS):
        torch.testing.assert_close(logits(model, ids), torch.cat(want), atol=1e-12, rtol=0)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="matches no parameter"):
        adapted(("mlp.experts.missing",))
    with pytest.raises(ConfigError, match="is a layer"):
        inject(llama(), AdapterConfig(target_parameters=("q_proj.weight",)))
    with pytest.raises(ConfigError, match="lora_dropout"):
        AdapterConfig(target_parameters=EXPERTS, lora_dropout=0.1)
