"""Which modules are meant, compared with peft's own matching, and what is said when none is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import MambaConfig, MambaForCausalLM

from core.adapters import adapter_names, adapter_parameters, inject, merge
from core.adapters.targets import base_modules, find_saved
from core.config import AdapterConfig
from core.errors import AdapterError, ConfigError
from core.export.peft import load_adapter
from core.models import inspect_model
from core.selection import is_saved, selected_targets
from tests.core.adapters.tiny import bart, bert, gpt2, llama, logits, shake, t5, tokens

CASES: list[dict[str, Any]] = [
    {"target_modules": "all-linear"},
    {"target_modules": ("q_proj", "v_proj")},
    {"target_modules": ("layers.1.self_attn.q_proj", "embed_tokens", "lm_head")},
    {"target_modules": r".*\.(q|k)_proj"},
    {"target_modules": r"model\.layers\.0\.mlp\.(up|down)_proj"},
    {"target_modules": "all-linear", "exclude_modules": ("k_proj", "layers.0.mlp.up_proj")},
    {"target_modules": "all-linear", "exclude_modules": r".*layers\.1.*"},
    {"target_modules": "all-linear", "modules_to_save": ("mlp.up_proj", "lm_head")},
    {"target_modules": ("q_proj", "o_proj"), "modules_to_save": ("self_attn.o_proj",)},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_modules_as_peft(case: dict[str, Any]) -> None:
    ours = inject(llama(), AdapterConfig(r=2, **case))
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in case.items()}
    theirs = inject_adapter_in_model(LoraConfig(r=2, **plain), llama())
    expected = [
        path
        for path, module in theirs.named_modules()
        if any(len(getattr(module, kind, ())) for kind in ("lora_A", "lora_embedding_A"))
    ]
    assert ours and sorted(ours) == sorted(expected)


@pytest.mark.parametrize("entry", ["norm", "lm_head", "head", "layers.1.mlp", "mlp.up_proj", "_proj"])
def test_the_modules_that_are_saved_are_one_question(entry: str) -> None:
    """What trains whole is what peft wraps; a plan, and what gets no adapter, go by the same rule."""
    made = get_peft_model(llama(), LoraConfig(r=2, target_modules=["embed_tokens"], modules_to_save=[entry]))
    wrapped = [path for path, module in made.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    expected = {path.removeprefix("base_model.model.") for path in wrapped}
    modules = base_modules(llama())
    config = AdapterConfig(r=2, target_modules=("embed_tokens",), modules_to_save=(entry,))
    saved = find_saved(modules, config)
    assert set(saved) == expected
    inside = {path for path in modules if any(f"{path}.".startswith(f"{one}.") for one in saved)}
    assert inside == {path for path in modules if is_saved(path, (entry,))}


@pytest.mark.parametrize("make", [t5, bart])
def test_a_table_that_is_only_there_to_be_shared_is_refused(make: Any, tmp_path: Path) -> None:
    """peft puts an adapter there that nothing ever runs; the layers that do run are those that a form offers."""
    name = {t5: "q", bart: "q_proj"}[make]
    for settings in ({"target_modules": ("shared", name)}, {"target_modules": (name,), "modules_to_save": ("shared",)}):
        with pytest.raises(ConfigError, match=r"shared' is never run.*Name embed_tokens instead"):
            inject(make(), AdapterConfig(r=2, **settings))
    made = get_peft_model(make(), LoraConfig(r=2, target_modules=["shared"]))
    made.save_pretrained(tmp_path / "theirs")
    assert load_adapter(make(), tmp_path / "theirs"), "what peft wrote does nothing here either"
    model = make()
    model.save_pretrained(tmp_path / "base")
    config = AdapterConfig(r=2, target_modules=("embed_tokens",))
    offered = {path for target in selected_targets(inspect_model(tmp_path / "base"), config) for path in target.paths}
    assert offered == set(inject(model, config))
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    gradients = [parameter.grad for parameter in adapter_parameters(model)]
    assert len(gradients) == 4 and all(gradient is not None for gradient in gradients)


def test_all_linear_on_gpt2_takes_conv1d_and_leaves_the_output_layer() -> None:
    found = inject(gpt2(), AdapterConfig(r=2))
    assert {name.rpartition(".")[2] for name in found} == {"c_attn", "c_proj", "c_fc"}


def test_all_linear_on_a_classifier_leaves_the_head() -> None:
    found = inject(bert(), AdapterConfig(r=2, modules_to_save=("pooler",)))
    assert found and not any(name.startswith(("classifier", "bert.pooler")) for name in found)


def test_a_second_adapter_sees_the_original_modules() -> None:
    model = llama()
    first = inject(model, AdapterConfig(r=2))
    assert inject(model, AdapterConfig(r=3), name="second") == first
    assert list(base_modules(model)) == list(base_modules(llama()))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_modules": ("qproj",)}, "Did you mean 'q_proj'"),
        ({"target_modules": ("q_proj", "vv_proj")}, "Did you mean 'v_proj'"),
        ({"target_modules": ("zzz",)}, "This model has: down_proj"),
        ({"target_modules": "nothing.*"}, "matches no layer"),
        ({"target_modules": "(q_proj"}, "not a regular expression"),
        ({"target_modules": ("mlp",)}, "gate_proj"),
        ({"target_modules": ("norm",)}, "LlamaRMSNorm"),
        ({"modules_to_save": ("lm_haed",)}, "Did you mean 'lm_head'"),
        ({"r": 9}, "Rank 9 is larger than layer 'model.layers.0.self_attn.k_proj', which is 16 x 8"),
        ({"rank_pattern": {"k_proj": 9}}, "Choose a rank up to 8"),
        ({"rank_pattern": {"(k_proj": 3}}, "not a regular expression"),
        ({"method": "lroa"}, "Did you mean 'lora'"),
        ({"method_options": {"beta": 1}}, "no options of its own"),
        ({"target_modules": "all-linear", "exclude_modules": ".*"}, "matches no layer"),
    ],
    ids=str,
)
def test_what_is_said_when_settings_do_not_fit(settings: dict[str, Any], words: str) -> None:
    model = llama()
    with pytest.raises(ConfigError) as caught:
        inject(model, AdapterConfig(**{"r": 4, **settings}))
    assert words in str(caught.value)
    assert not adapter_names(model) and not list(adapter_parameters(model)), "nothing was changed"
    assert all(type(module).__name__ != "AdaptedModule" for module in model.modules())


@pytest.mark.parametrize("name", ["", "a.b", "keys", "train", "../x", "x" * 200])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(AdapterError, match="cannot be the name"):
        inject(llama(), AdapterConfig(r=2), name=name)


def test_a_name_is_taken_once() -> None:
    model = llama()
    inject(model, AdapterConfig(r=2))
    with pytest.raises(AdapterError, match="already has"):
        inject(model, AdapterConfig(r=2))


def test_multihead_attention_is_refused_because_it_would_ignore_the_adapter() -> None:
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2), "up": nn.Linear(8, 8)})
    assert inject(model, AdapterConfig(r=2)) == ["up"]
    with pytest.raises(ConfigError, match="would ignore"):
        inject(model, AdapterConfig(r=2, target_modules=("out_proj",)), name="second")


def test_a_weight_that_mamba_reads_without_running_its_layer_gets_no_adapter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=40, state_size=4)).eval()
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="part of a MambaMixer, which reads its weight directly"):
        inject(model, AdapterConfig(r=1, target_modules=("dt_proj",)))
    made = get_peft_model(MambaForCausalLM(model.config), LoraConfig(r=1, target_modules=["dt_proj"]))
    made.save_pretrained(tmp_path / "theirs")
    assert load_adapter(MambaForCausalLM(model.config), tmp_path / "theirs"), "which peft allows, without effect"
    config = AdapterConfig(r=1)
    found = inject(model, config, seed=0)
    assert {path.rpartition(".")[2] for path in found} == {"in_proj", "x_proj", "out_proj"}
    assert {path for target in selected_targets(inspect_model(tmp_path), config) for path in target.paths} == set(found)
    shake(model, size=0.1)
    expected = logits(model, tokens())
    merge(model)
    torch.testing.assert_close(logits(model, tokens()), expected, atol=1e-5, rtol=0)


def test_layers_shared_by_two_parents_are_adapted_once() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.Linear(4, 4)})
    model["c"] = shared
    assert inject(model, AdapterConfig(r=2)) == ["a", "b"]
    assert torch.is_tensor(model["a"].weight)
