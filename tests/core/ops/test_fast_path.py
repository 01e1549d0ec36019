"""A model on the fast path: plain autograd's loss and gradients in float64, and its own forward whenever it must."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from core.adapters import adapter_rows, inject, merge, names, set_adapter, unmerge
from core.config import AdapterConfig, TrainConfig
from core.methods import methods
from core.models import load_model
from core.ops import factors, precision
from core.ops.coverage import is_fused
from core.ops.fast_path import LED, FastPath
from core.ops.group import Group
from core.ops.recognition import read_layer
from core.ops.stand_in import NormStandIn
from core.quantize.model import quantize_model
from tests.core.ops.families import OWN, adapted, exact, step, tiny, worst_difference
from tests.core.toy import toy_gpt2, toy_llama
from tests.live import figure

ATTENTION = ("q_proj", "k_proj", "v_proj", "qkv_proj")
EXACT = 1e-12


def check(model: Any, expected: str = "all 3 layers") -> None:
    path = FastPath(model)
    assert expected in path.sentence
    (loss, gradients), (fused_loss, fused) = step(model, None), step(model, path)
    assert abs(fused_loss - loss) <= EXACT * abs(loss)
    assert worst_difference(gradients, fused) < EXACT
    assert all(each.abs().max() > 0 for each in fused.values())


@pytest.mark.parametrize("family", OWN)
def test_every_family_equals_autograd(family: str) -> None:
    model = exact(adapted(tiny(family)))
    check(model)
    assert is_fused(model.config.model_type, TrainConfig())  # what plans of a run count on


@pytest.mark.parametrize("family", ["Llama", "Phi3", "Gemma3Text"])
@pytest.mark.parametrize(
    "settings",
    [
        {"lora_dropout": 0.3},
        {"method": "dora"},
        {"method": "rslora"},
        {"method": "lora_fa"},
        {"method": "lora_plus"},
        {"method": "lora_drop"},
        {"method": "adalora"},
        {"method": "adalora", "lora_dropout": 0.3},
        {"method": "dynamic_rank"},
        {"method": "delta_lora"},
        {"method": "sparse_lora"},
        {"method": "sparse_lora", "method_options": {"mode": "gated"}, "lora_dropout": 0.3},
        {"method": "sparse_lora", "method_options": {"mode": "sum"}},
        {"rank_pattern": {"down_proj": 2, "o_proj": 7}, "alpha_pattern": {"down_proj": 1.0}},
        {"target_modules": ATTENTION[1:]},
        {"target_modules": ("o_proj", "up_proj")},
        {"target_modules": r".*layers\.2\..*(_proj)"},
    ],
    ids=str,
)
def test_every_setting_equals_autograd(family: str, settings: dict[str, Any]) -> None:
    model = tiny(family)
    if settings.get("target_modules") == ("o_proj", "up_proj") and family == "Phi3":
        settings = {"target_modules": ("o_proj",)}
    if "target_modules" in settings and isinstance(settings["target_modules"], tuple):
        names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        settings = {"target_modules": tuple(name for name in settings["target_modules"] if name in names)}
    check(exact(adapted(model, **settings)))


@pytest.mark.parametrize("method", ["lora", "adalora", "delta_lora", "sparse_lora"])
def test_nothing_of_a_pass_outlives_it(method: str) -> None:
    """Else a pass that is recorded as a graph would add to gradients on the stream of an earlier one, and fail."""
    model = adapted(tiny("Llama"), method=method)
    path = FastPath(model)
    nodes = [_accumulates(each) for each in model.parameters() if each.requires_grad]
    for node in nodes:
        node.metadata["seen"] = True
    step(model, path)
    del node, nodes
    fresh = [_accumulates(each) for each in model.parameters() if each.requires_grad]
    assert not any("seen" in node.metadata for node in fresh)


def _accumulates(parameter: torch.Tensor) -> Any:
    """The node that adds to a parameter's gradient: torch makes it again once no graph has it any more."""
    function: Any = parameter.view_as(parameter).grad_fn
    return function.next_functions[0][0]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_quantised_base_equals_autograd(kind: str, method: str) -> None:
    model = tiny("Llama").double()
    quantize_model(model, kind)
    check(exact(adapted(model, method=method)))


def test_the_norm_behind_the_layers_is_fused_unless_it_trains() -> None:
    model: Any = exact(adapted(tiny("Llama")))
    own = model.base_model.norm.forward
    with FastPath(model).running():
        assert isinstance(model.base_model.norm.forward, NormStandIn)
    assert model.base_model.norm.forward == own
    model.base_model.norm.weight.requires_grad_(True)
    with FastPath(model).running():
        assert model.base_model.norm.forward == own


def test_nothing_flows_below_the_lowest_adapter() -> None:
    """The first two layers are not adapted: no gradient of their input is formed, nothing of them is kept."""
    model = exact(adapted(tiny("Llama"), target_modules=r".*layers\.2\..*_proj"))
    path, kept = FastPath(model), []
    hidden = torch.zeros(1, 4, 32, dtype=torch.float64)
    angles = torch.ones(1, 4, 8, dtype=torch.float64), torch.zeros(1, 4, 8, dtype=torch.float64)
    with path.running(), saved_tensors_hooks(kept.append, lambda _: None):
        out = model.model.layers[1](hidden, position_embeddings=angles)
    assert not out.requires_grad and not kept


def test_everything_trains_by_the_second_step() -> None:
    model = tiny("Qwen3")
    inject(model, AdapterConfig(r=4), seed=1)
    path = FastPath(model)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    _, first = step(model, path)
    assert all((each.abs().max() > 0) == ("lora_B" in name) for name, each in first.items())
    optimizer.step()
    _, second = step(model, path)
    assert all(each.abs().max() > 0 for each in second.values())
    assert len(second) == len(first) == 2 * 7 * 3


@pytest.mark.parametrize("is_emulated", [False, True], ids=["in 16 bits", "widened"])
def test_bfloat16_is_no_less_exact_than_peft(is_emulated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64 on the same bfloat16 weights: the mean error of a gradient, ours, layer by layer and peft's."""
    monkeypatch.setattr(precision, "has_half_products", lambda: not is_emulated)
    model = adapted(tiny("Llama", hidden_size=128, intermediate_size=256))
    base = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in base:
        parameter.data = parameter.data.bfloat16()
    _, truth = step(exact(model), None)
    for module in model.modules():
        module.__dict__.pop("forward", None)
    model.float()
    for parameter in base:
        parameter.data = parameter.data.bfloat16()
    theirs = _like_peft(model)
    found = {
        "fused": step(model, FastPath(model))[1],
        "layer by layer": step(model, None)[1],
        "peft": {_our_name(name): each for name, each in step(theirs, None)[1].items()},
    }
    errors = {who: _mean_error(gradients, truth) for who, gradients in found.items()}
    figure(f"mean gradient error in bfloat16: {', '.join(f'{who} {error:.1e}' for who, error in errors.items())}")
    assert errors["fused"] <= errors["peft"] < 0.2 and errors["fused"] <= errors["layer by layer"]


def _mean_error(gradients: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    assert gradients.keys() == truth.keys()
    errors = [float((gradients[name].double() - each).norm() / each.norm()) for name, each in truth.items()]
    return sum(errors) / len(errors)


def _like_peft(model: Any) -> Any:
    """peft's model with the same weights."""
    from peft import LoraConfig, get_peft_model

    plain = tiny("Llama", hidden_size=128, intermediate_size=256).to(torch.bfloat16)
    wrapped = get_peft_model(plain, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    own = dict(model.named_parameters())
    for name, parameter in wrapped.get_base_model().named_parameters():
        parameter.data = own[_our_name(name)].data.to(parameter.dtype, copy=True)
    return wrapped.get_base_model()


def _our_name(name: str) -> str:
    for matrix in ("lora_A", "lora_B"):
        name = name.replace(f"{matrix}.default.weight", f"adapters.default.{matrix}")
    return name


def test_layers_it_does_not_know_run_as_they_are() -> None:
    gpt2 = FastPath(adapted(toy_gpt2()))
    assert gpt2.sentence == "Generic path, layer by layer: GPT2LMHeadModel is of another architecture."
    off = FastPath(adapted(toy_llama()), is_wanted=False)
    assert off.sentence == "Generic path, layer by layer: fast_path is off."
    vera = toy_llama()
    inject(vera, AdapterConfig(method="vera"))
    assert FastPath(vera).sentence == "Generic path, layer by layer: VeRA has no fused form."
    dora = FastPath(adapted(toy_llama(), method="dora", lora_dropout=0.1))
    assert dora.sentence == "Generic path, layer by layer: DoRA has no fused form as it is set."
    bias = FastPath(adapted(tiny("Llama"), bias="lora_only"))
    assert bias.sentence == "Generic path, layer by layer: weights or biases of the base itself are trained."
    some = tiny("Llama")
    inject(some, AdapterConfig(target_modules=r".*layers\.0\..*_proj", method="vera"), "one")
    assert FastPath(some).sentence == (
        "Fast path: 2 of 3 layers run fused; 1 because VeRA has no fused form run as the model has them."
    )


@pytest.mark.parametrize(
    "settings",
    [
        *({"method": name} for name in names() if "target_modules" in methods.get(name).uses),
        {"method": "dora", "lora_dropout": 0.1},
        {"method": "delta_lora", "method_options": {"mode": "mutate"}},
        {"method": "dynamic_rank", "method_options": {"nested": True}},
        {"method": "sparse_lora", "method_options": {"blocks": 8}},
        {"method": "sparse_lora", "method_options": {"mode": "gated"}},
    ],
    ids=str,
)
def test_plans_count_on_what_is_so(settings: dict[str, Any]) -> None:
    model, config = tiny("Llama", intermediate_size=64), AdapterConfig(**settings)
    inject(model, config)
    assert FastPath(model).sentence.startswith("Fast") == is_fused("llama", TrainConfig(adapter=config))


def test_a_layer_that_computes_something_else_is_found_out() -> None:
    model = tiny("Llama")
    model.model.layers[1].self_attn.scaling *= 2
    assert "all 3" in FastPath(model).sentence  # read from the module itself
    model.model.layers[1].mlp.forward = lambda x: 2 * x
    assert "do not give the model's own hidden states" in FastPath(model).sentence


@pytest.mark.parametrize("is_emulated", [False, True], ids=["in 16 bits", "widened"])
def test_the_starter_takes_it_in_bfloat16(
    starter_folder: Path, is_emulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real model, whose layers cancel and amplify: rounding must not be taken for another architecture."""
    monkeypatch.setattr(precision, "has_half_products", lambda: not is_emulated)
    model, _ = load_model(starter_folder, "bfloat16")
    inject(model, AdapterConfig())
    assert FastPath(model).sentence == "Fast path: all 30 layers run fused."


def states(model: Any, path: FastPath | None, tokens: torch.Tensor) -> torch.Tensor:
    if path is None:
        return model(input_ids=tokens, use_cache=False).logits
    with path.running():
        return model(input_ids=tokens, use_cache=False).logits


@torch.no_grad()
def test_what_is_active_is_read_at_every_run() -> None:
    """Merged, switched off, two at once, an adapter per row, a hook: each time the model's own numbers."""
    model = exact(adapted(tiny("Llama")))
    inject(model, AdapterConfig(r=3), "second", seed=2)
    path, tokens = FastPath(model), torch.arange(3, 23).view(2, 10)

    def same() -> str:
        torch.testing.assert_close(states(model, path, tokens), states(model, None, tokens), rtol=1e-10, atol=1e-10)
        return path.sentence

    set_adapter(model, "default")
    assert "all 3" in same()
    set_adapter(model, None)
    assert "all 3" in same()
    set_adapter(model, ["default", "second"])
    assert "several adapters are active" in same()
    set_adapter(model, "default")
    with adapter_rows(model, ["default", None]):
        assert "every row of the batch has its own adapter" in same()
    merge(model, "default")
    assert "an adapter is merged into the weights" in same()
    unmerge(model)
    seen: list[Any] = []
    handle = model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: seen.append(1))
    assert "through hooks" in same() and len(seen) == 2
    handle.remove()
    assert "all 3" in same()


def test_what_is_active_may_change_while_it_runs() -> None:
    """As preference tuning asks the bare base in between; dropout goes on and off with the mode."""
    model = exact(adapted(tiny("Llama"), lora_dropout=0.3))
    path, tokens = FastPath(model), torch.arange(3, 23).view(2, 10)
    own = states(model, None, tokens)
    set_adapter(model, None)
    bare = states(model, None, tokens)
    with path.running():
        assert torch.allclose(states(model, None, tokens), bare, rtol=1e-10, atol=1e-10)
        set_adapter(model, "default")
        assert torch.allclose(states(model, None, tokens), own, rtol=1e-10, atol=1e-10)
        with adapter_rows(model, ["default", None]):
            mixed = torch.cat([own[:1], bare[1:]])
            assert torch.allclose(states(model, None, tokens), mixed, rtol=1e-10, atol=1e-10)
        model.train()
        states(model, None, tokens).sum().backward()
        assert not torch.allclose(states(model, None, tokens), own, rtol=1e-3)


@torch.no_grad()
def test_a_model_can_answer_while_the_path_runs() -> None:
    model = adapted(tiny("Llama"))
    tokens = torch.arange(3, 13).unsqueeze(0)
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    own = model.generate(tokens, **settings)
    with FastPath(model).running():
        assert torch.equal(model.generate(tokens, **settings), own)


def test_the_model_is_as_it_was_afterwards() -> None:
    model = adapted(tiny("Llama"))
    path = FastPath(model)
    with pytest.raises(ValueError), path.running():
        assert all("forward" in layer.__dict__ for layer in model.model.layers)
        raise ValueError
    assert not any("forward" in module.__dict__ for module in model.modules())


def kept_bytes(model: Any, path: FastPath | None, length: int) -> int:
    """Bytes that one layer keeps for the backward pass, each stored number once; weights and adapters aside."""
    layer, seen = model.model.layers[1], {}
    own = {each.untyped_storage().data_ptr() for each in [*model.parameters(), *model.buffers()]}
    hidden = torch.randn(1, length, 256).to(torch.bfloat16).requires_grad_()
    angles = model.model.rotary_emb(hidden, torch.arange(length).unsqueeze(0))
    own |= {each.untyped_storage().data_ptr() for each in angles}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = tensor  # alive, so that no two share an address
        return tensor

    model.train()
    with path.running() if path else contextlib.nullcontext(), saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(hidden, position_embeddings=angles, attention_mask=None)
    return sum(each.untyped_storage().nbytes() for each in seen.values())


@pytest.mark.parametrize(("settings", "most"), [({}, 25), ({"lora_dropout": 0.1}, 25), ({"method": "dora"}, 34)])
def test_bytes_kept_of_a_token(settings: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per token and width of the hidden state, in bfloat16 and the shape of Llama 3: peft keeps 54 to 110."""
    monkeypatch.setattr(precision, "has_half_products", lambda: True)  # keep 16 bits, as a GPU does
    shape = {"hidden_size": 256, "intermediate_size": 896, "num_attention_heads": 8, "attention_bias": False}
    model = tiny("Llama", **shape).to(torch.bfloat16)
    adapted(model, **{"r": 2, **settings})
    generic, fused = kept_bytes(model, None, 64), kept_bytes(model, FastPath(model), 64)
    figure(f"bytes kept per token and width, {settings or 'LoRA'}: {fused / 64 / 256:.1f}, layer by layer "
           f"{generic / 64 / 256:.1f}")  # fmt: skip
    assert fused / 64 / 256 <= most


def layers_read(path: FastPath, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many layers `running` reads anew."""
    read: list[Any] = []
    monkeypatch.setattr("core.ops.stand_in.read_layer", lambda layer: read.append(layer) or read_layer(layer))
    with path.running():
        return len(read)


def test_layers_are_read_again_only_where_something_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exact(adapted(tiny("Llama")))
    path = FastPath(model)
    layer = model.model.layers[1]
    assert layers_read(path, monkeypatch) == 3
    assert layers_read(path, monkeypatch) == 0
    handle = layer.mlp.up_proj.register_forward_hook(lambda *unused: None)
    assert layers_read(path, monkeypatch) == 1
    assert "hooks" in path.sentence
    handle.remove()
    assert layers_read(path, monkeypatch) == 1
    layer.self_attn.q_proj.base_layer.weight.requires_grad_(True)
    assert layers_read(path, monkeypatch) == 1
    layer.self_attn.q_proj.base_layer.weight.requires_grad_(False)
    adapter = layer.mlp.down_proj.adapter("default")
    adapter.lora_A = torch.nn.Parameter(adapter.lora_A.detach().clone())
    assert layers_read(path, monkeypatch) == 1
    check(model)


def test_the_factors_of_a_few_layers_are_made_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exact(adapted(tiny("Llama", num_hidden_layers=6)))
    made: list[int] = []

    def noted(groups: list[Group], dtype: torch.dtype) -> list[factors.Made]:
        made.append(len(groups))
        return make(groups, dtype)

    make = factors.make_factors
    for module in ("factors", "group"):  # ahead, and by a group for itself
        monkeypatch.setattr(f"core.ops.{module}.make_factors", noted)
    path = FastPath(model)
    made.clear()
    with path.running():
        model(input_ids=torch.arange(6).unsqueeze(0), use_cache=False)
    assert made == [4 * LED, 4 * 2]
    check(model, "all 6 layers")


def test_a_change_between_two_passes_of_one_run_counts() -> None:
    model = exact(adapted(tiny("Llama")))
    path = FastPath(model)
    tokens = torch.arange(6).unsqueeze(0)
    with path.running(), torch.no_grad():
        before = model(input_ids=tokens, use_cache=False).logits
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(2.0)
        after = model(input_ids=tokens, use_cache=False).logits
    assert (before - after).abs().max() > 1e-6
    torch.testing.assert_close(after, model(input_ids=tokens, use_cache=False).logits, rtol=0, atol=1e-12)
    groups = [group for layer in path._read_before.values() if layer.fused for group in layer.fused.groups]
    assert groups and all(group.ahead is None for group in groups)  # and nothing of it is kept
