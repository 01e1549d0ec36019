"""PEFT folders against peft 0.21 itself, both ways: logits and all gradients, and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from core.adapters import (
    adapter_config,
    adapter_names,
    adapter_parameters,
    adapter_state_dict,
    inject,
    set_adapter,
)
from core.config import AdapterConfig
from core.errors import AdapterError, ConfigError
from core.export.peft import load_adapter, read_adapter_config, save_adapter
from tests.core.adapters.tiny import (
    bart,
    bert,
    forward,
    gemma3,
    gpt2,
    llama,
    logits,
    mixtral,
    qwen3,
    shake,
    t5,
    tokens,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # peft's advice on tied embeddings and on where it saves


def tied_llama() -> Any:
    return llama(tie_word_embeddings=True)


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "llama all-linear": (llama, {"target_modules": "all-linear"}),
    "llama rslora": (llama, {"target_modules": ["q_proj", "up_proj"], "use_rslora": True}),
    "llama patterns": (
        llama,
        {
            "target_modules": ["q_proj", "k_proj", "down_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "k_proj": 3},
            "alpha_pattern": {"q_proj": 5, r"layers\.0\..*": 1},
        },
    ),
    "llama regex": (llama, {"target_modules": r".*\.(q|v)_proj", "exclude_modules": r".*layers\.1.*"}),
    "llama head saved": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "llama head adapted": (llama, {"target_modules": ["q_proj", "lm_head"]}),
    "tied embedding adapted": (tied_llama, {"target_modules": ["embed_tokens", "v_proj"]}),
    "tied both saved": (tied_llama, {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "gpt2 all-linear": (gpt2, {"target_modules": "all-linear", "fan_in_fan_out": True}),
    "gpt2 embeddings": (gpt2, {"target_modules": ["wte", "wpe", "c_attn"], "fan_in_fan_out": True}),
    "gpt2 bias lora_only": (gpt2, {"target_modules": ["c_attn"], "bias": "lora_only", "fan_in_fan_out": True}),
    "gpt2 bias all": (gpt2, {"target_modules": ["c_attn", "c_fc"], "bias": "all", "fan_in_fan_out": True}),
    "gemma3 embedding": (gemma3, {"target_modules": ["embed_tokens", "q_proj"]}),
    "bert classifier": (bert, {"target_modules": ["query", "dense"], "task_type": "SEQ_CLS"}),
    "qwen3 all-linear": (qwen3, {"target_modules": "all-linear"}),
    "mixtral attention": (mixtral, {"target_modules": ["q_proj", "v_proj", "o_proj"]}),
    "t5 attention and output": (t5, {"target_modules": ["q", "v", "wo"], "task_type": "SEQ_2_SEQ_LM"}),
    "bart attention, biases": (bart, {"target_modules": ["q_proj", "v_proj", "fc1"], "bias": "lora_only"}),
    "llama one layer": (llama, {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
}
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


def loss_of(model: Any) -> torch.Tensor:
    """A number that depends on every logit, without a task's own loss."""
    found = forward(model, tokens())
    return (found * torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)).sum()


def gradients_of_peft(model: Any) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None and "ranknum" not in name:
            key = name.replace(".default", "").replace(".modules_to_save", "")
            found[key.replace("magnitude_vector.weight", "magnitude_vector")] = parameter.grad
    return found


def gradients_of_ours(model: Any) -> dict[str, torch.Tensor]:
    from core.adapters.state import live_tensors

    return {key: tensor.grad for key, tensor in live_tensors(model, "default").items() if tensor.grad is not None}


def made_by_peft(case: str, dtype: torch.dtype, folder: Path) -> Any:
    make, settings = CASES[case]
    model = get_peft_model(make().to(dtype), LoraConfig(r=4, lora_alpha=6, **settings)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(make().to(dtype), folder, is_trainable=True).eval()  # the file is what counts


def compare(ours: Any, theirs: Any, tolerance: float) -> None:
    """Logits and the gradient of every trained tensor, under the same names."""
    assert (logits(ours, tokens()) - logits(theirs, tokens())).abs().max() <= tolerance
    for model in (ours, theirs):
        model.zero_grad()
        loss_of(model).backward()
    found, expected = gradients_of_ours(ours), gradients_of_peft(theirs)
    assert set(found) == set(expected) and found
    for key, gradient in expected.items():
        assert (found[key] - gradient).abs().max() <= tolerance * max(1.0, float(gradient.abs().max())), key


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_peft_to_ours(case: str, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    theirs = made_by_peft(case, dtype, tmp_path)
    ours = CASES[case][0]().to(dtype)
    base = logits(ours, tokens())
    assert load_adapter(ours, tmp_path)
    assert (logits(ours, tokens()) - base).abs().max() > 1e-4, "the adapter does nothing, so the test shows nothing"
    compare(ours, theirs, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_ours_to_peft(case: str, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    make, settings = CASES[case]
    ignored = ("fan_in_fan_out", "task_type", "layers_to_transform")
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items() if key not in ignored}
    if case == "bert classifier":
        plain["modules_to_save"] = ("classifier", "score")
    ours = make().to(dtype)
    inject(ours, AdapterConfig(r=4, lora_alpha=6.0, **plain), seed=0)
    shake(ours, size=0.1)
    save_adapter(ours, tmp_path)
    theirs = PeftModel.from_pretrained(make().to(dtype), tmp_path, is_trainable=True).eval()
    compare(ours, theirs, tolerance)


def test_several_adapters_equal_peft_with_the_same_ones(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    made_by_peft("llama all-linear", torch.float64, one)
    made_by_peft("llama rslora", torch.float64, two)
    ours = llama().double()
    load_adapter(ours, one, "one")
    load_adapter(ours, two, "two")
    assert adapter_names(ours) == ["one", "two"]
    theirs = PeftModel.from_pretrained(llama().double(), one, adapter_name="one").eval()
    theirs.load_adapter(two, "two")
    for name in ("one", "two"):
        set_adapter(ours, name)
        theirs.set_adapter(name)
        assert (logits(ours, tokens()) - logits(theirs, tokens())).abs().max() < 1e-10
    set_adapter(ours, ["one", "two"])
    theirs.base_model.set_adapter(["one", "two"])
    assert (logits(ours, tokens()) - logits(theirs, tokens())).abs().max() < 1e-10


ORDERED = {"q_proj": 20.0, r"layers\.0\..*": 1.0}


@pytest.mark.parametrize("case", ["llama rslora", "gpt2 bias all", "tied both saved"])
def test_config_comes_back(case: str, tmp_path: Path) -> None:
    ours = CASES[case][0]()
    settings = {key: value for key, value in CASES[case][1].items() if key != "fan_in_fan_out"}
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    config = AdapterConfig(r=4, lora_alpha=6.5, lora_dropout=0.1, **plain)
    inject(ours, config)
    save_adapter(ours, tmp_path)
    found = read_adapter_config(tmp_path)
    in_order = {key: tuple(sorted(value)) if isinstance(value, tuple) else value for key, value in plain.items()}
    method = "rslora" if "use_rslora" in plain else "lora"
    assert found == AdapterConfig(method=method, r=4, lora_alpha=6.5, lora_dropout=0.1, **in_order)


def test_patterns_whose_order_matters_survive_a_file_that_sorts_them(tmp_path: Path) -> None:
    """The first match counts, and peft sorts the keys when it saves: its own round trip changes such an adapter."""
    model = llama()
    inject(model, AdapterConfig(r=4, lora_alpha=8.0, target_modules=("q_proj",), alpha_pattern=dict(ORDERED)), seed=0)
    shake(model, size=0.1)
    folder = save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(llama(), folder).eval()
    assert (logits(theirs, tokens()) - logits(model, tokens())).abs().max() < 1e-5
    twin = llama()
    load_adapter(twin, folder)
    assert torch.equal(logits(twin, tokens()), logits(model, tokens()))


def test_the_file_is_peft_021s_layout(tmp_path: Path) -> None:
    """Every field peft writes and no other; sorted; alpha an integer; all-linear spelled out in short names."""
    theirs = tmp_path / "theirs"
    made_by_peft("llama all-linear", torch.float32, theirs)
    model = llama()
    inject(model, AdapterConfig(r=4, lora_alpha=6.0), seed=0)
    ours = save_adapter(model, tmp_path / "ours", base_model="some/base")
    text = (ours / "adapter_config.json").read_text(encoding="utf-8")
    values, other = json.loads(text), json.loads((theirs / "adapter_config.json").read_text(encoding="utf-8"))
    assert list(values) == sorted(other)
    assert '"lora_alpha": 6,' in text and values["base_model_name_or_path"] == "some/base"
    names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert values["target_modules"] == names
    assert values["task_type"] == "CAUSAL_LM" and values["peft_type"] == "LORA"
    ours_shapes = {key: value.shape for key, value in load_file(ours / "adapter_model.safetensors").items()}
    theirs_shapes = {key: value.shape for key, value in load_file(theirs / "adapter_model.safetensors").items()}
    assert ours_shapes == theirs_shapes


def test_the_same_adapter_gives_the_same_bytes(tmp_path: Path) -> None:
    model = llama()
    inject(model, AdapterConfig(r=4, target_modules=("v_proj", "q_proj")), seed=0)
    digests = []
    for name in ("a", "b"):
        folder = save_adapter(model, tmp_path / name)
        digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()})
    twin = llama()
    load_adapter(twin, tmp_path / "a")
    again = save_adapter(twin, tmp_path / "c")
    digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in again.iterdir()})
    assert digests[0] == digests[1] == digests[2]


def test_short_names_are_given_up_when_they_would_match_more(tmp_path: Path) -> None:
    """A name inside and outside the excluded part: only the paths say what is meant."""
    model = gpt2()
    inject(model, AdapterConfig(r=2, exclude_modules=("attn.c_proj",)))
    folder = save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(gpt2(), folder)
    found = {name.rpartition(".lora_A")[0] for name, _ in theirs.named_parameters() if ".lora_A." in name}
    assert {name.removeprefix("base_model.model.") for name in found} == {
        f"transformer.h.{i}.{leaf}" for i in (0, 1) for leaf in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj")
    }


def test_a_bf16_base_keeps_float32_adapters(tmp_path: Path) -> None:
    model = llama().to(torch.bfloat16)
    inject(model, AdapterConfig(r=4))
    folder = save_adapter(model, tmp_path)
    assert {tensor.dtype for tensor in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}


def test_reading_a_config_imports_no_torch(tmp_path: Path) -> None:
    model = llama()
    inject(model, AdapterConfig(r=4))
    folder = save_adapter(model, tmp_path)
    code = (
        "import sys; from core.export.peft import read_adapter_config; "
        "config = read_adapter_config(sys.argv[1]); "
        "raise SystemExit(config.r != 4 or 'torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = llama()
    inject(model, AdapterConfig(r=4, target_modules=("q_proj", "v_proj")), seed=0)
    return save_adapter(model, tmp_path / "adapter")


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"peft_type": "LOHA"}, "'LOHA'"),
        ({"peft_type": None}, "None"),
        ({"use_dora": True}, "4 missing (model.layers.0.self_attn.q_proj.lora_magnitude_vector"),
        ({"layer_replication": [[0, 2]]}, "replicated layers"),
        ({"init_lora_weights": "pissa"}, "'pissa'"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"init_lora_weights": "olora"}, "'olora'"),
        ({"init_lora_weights": "corda"}, "'corda'"),
        ({"init_lora_weights": 1}, "started from 1"),
        ({"lora_bias": True}, "lora_B"),
        ({"trainable_token_indices": [1]}, "trainable tokens"),
        ({"a_future_switch": True}, "'a_future_switch'"),
        ({"r": "8"}, "r in adapter_config.json is '8'"),
        ({"r": True}, "True"),
        ({"target_modules": None}, "no target_modules"),
        ({"target_modules": [1]}, "not a list of names"),
        ({"rank_pattern": {"q_proj": "x"}}, "the value 'x'"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "the value nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "too complex"),
        ({"target_modules": ["q_proj"]}, "2 tensors"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "4 missing"),
        ({"r": 8}, "(4, 16) instead of (8, 16)"),
        ({"bias": "some"}, "bias is 'some'"),
        ({"r": 5000}, "5000"),
    ],
    ids=str,
)
def test_configs_that_are_refused(saved: Path, values: dict[str, Any], words: str) -> None:
    change_config(saved, **values)
    model = llama()
    with pytest.raises((AdapterError, ConfigError)) as caught:
        load_adapter(model, saved)
    if words == "2 tensors":
        words = "4 not of this adapter (model.layers.0.self_attn.v_proj.lora_A.weight"
    assert words in str(caught.value)
    assert not adapter_names(model) and torch.equal(logits(model, tokens()), logits(llama(), tokens()))


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_starts_that_leave_the_base_alone_are_loaded(saved: Path, start: object) -> None:
    change_config(saved, init_lora_weights=start, loftq_config={}, an_old_field=None)
    assert len(load_adapter(llama(), saved)) == 4


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[KEY].fill_(float("nan")), "NaN or infinity"),
        (lambda t: t[KEY].fill_(float("inf")), "NaN or infinity"),
        (lambda t: t.update({KEY: torch.zeros(4, 17)}), "(4, 17) instead of (4, 16)"),
        (lambda t: t.update({KEY: torch.zeros(4, 16, dtype=torch.int32)}), "not floating point"),
        (lambda t: t.pop(KEY), "1 missing (model.layers.0.self_attn.q_proj.lora_A.weight)"),
        (lambda t: t.update({"base_model.model.extra": torch.zeros(2)}), "1 not of this adapter (extra)"),
    ],
)
def test_tensors_that_are_refused(saved: Path, change: Callable[..., Any], words: str) -> None:
    change_tensors(saved, change)
    model = llama()
    inject(model, AdapterConfig(r=2), name="mine", seed=1)
    shake(model, "mine")
    before = logits(model, tokens())
    with pytest.raises(AdapterError) as caught:
        load_adapter(model, saved)
    assert words in str(caught.value)
    assert adapter_names(model) == ["mine"] and torch.equal(logits(model, tokens()), before)
    assert all(parameter.requires_grad for parameter in adapter_parameters(model, "mine"))


def test_folders_that_are_refused(tmp_path: Path, saved: Path) -> None:
    weights = saved / "adapter_model.safetensors"
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("not a whole safetensors", lambda: weights.write_bytes(weights.read_bytes()[:-9])),
        ("not a whole safetensors", lambda: weights.write_bytes(b"\xff" * 64)),
        ("only pickle weights", lambda: weights.rename(saved / "adapter_model.bin")),
        ("has no adapter_model", lambda: (saved / "adapter_model.bin").unlink()),
    ]
    for words, damage in cases:
        damage()
        with pytest.raises(AdapterError, match=words):
            load_adapter(llama(), saved)
    with pytest.raises(AdapterError, match="is not an adapter"):
        read_adapter_config(tmp_path / "nothing")
    for text in ("[1]", "{", "[" * 100_000, " " * (5 << 20)):
        (saved / "adapter_config.json").write_text(text, encoding="utf-8")
        with pytest.raises(AdapterError):
            read_adapter_config(saved)


def test_a_regular_expression_from_a_file_cannot_hang(saved: Path) -> None:
    """The modules are then taken from the file's own tensors: the same four."""
    change_config(saved, target_modules="(([a-z0-9_.]+)+)+_proj$", modules_to_save=["(([a-z0-9_.]+)+)+!"])
    with pytest.raises(ConfigError, match="modules_to_save"):
        load_adapter(llama(), saved)
    change_config(saved, modules_to_save=None)
    model = llama()
    names = load_adapter(model, saved)
    assert sorted({name.rpartition(".")[2] for name in names}) == ["q_proj", "v_proj"] and len(names) == 4
    assert isinstance(adapter_config(model).target_modules, tuple)


def test_peft_may_store_the_embedding_it_adapted(tmp_path: Path) -> None:
    """`base_layer.weight` of an embedding is accepted where it is this base's own, and refused where it is not."""
    make, settings = CASES["tied embedding adapted"]
    theirs = get_peft_model(make(), LoraConfig(r=4, **settings))
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert any(key.endswith("embed_tokens.base_layer.weight") for key in stored)
    load_adapter(make(), tmp_path)
    other = make()
    with torch.no_grad():
        other.model.embed_tokens.weight += 1
    with pytest.raises(AdapterError, match="brings its own base weight"):
        load_adapter(other, tmp_path)


def test_rank_above_the_layer_is_loaded_when_peft_trained_it(tmp_path: Path) -> None:
    get_peft_model(llama(), LoraConfig(r=12, target_modules=["k_proj"])).save_pretrained(tmp_path)
    model = llama()
    assert load_adapter(model, tmp_path) and len(adapter_state_dict(model)) == 4
