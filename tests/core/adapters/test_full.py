"""Full, partial and bias-only fine-tuning against plain autograd on an unfrozen model, and what becomes of ties."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from core.adapters import adapter_parameters, inject, merge, remove_adapter, unmerge
from core.adapters.inject import adapters_of
from core.checkpoint import load_checkpoint, save_checkpoint
from core.config import AdapterConfig
from core.errors import ConfigError
from core.export.peft import load_adapter, save_adapter
from core.merge import merge_to_folder
from core.methods import methods
from core.models import inspect_model
from core.quantize.model import quantize_model
from tests.core.adapters.tiny import VOCABULARY, bert, gpt2, llama, logits, shake, tokens
from tests.core.toy import same_bits, toy_config, toy_gpt2, toy_trainer, trained_state

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
tied_llama = partial(llama, tie_word_embeddings=True)
MODELS = {"llama": llama, "tied llama": tied_llama, "gpt2": gpt2}
FULL = AdapterConfig(method="full")
BITFIT = AdapterConfig(method="bitfit")


def some(part: str, blocks: int = 2) -> AdapterConfig:
    return AdapterConfig(method="partial", method_options={"part": part, "blocks": blocks})


PARTS = {"full": FULL, "blocks": some("last_blocks", 1), "norms": some("layernorm"), "head": some("head")}
CASES = [(model, name) for model in MODELS for name in PARTS] + [("gpt2", "bitfit")]
CONFIGS = {**PARTS, "bitfit": BITFIT}


def t5() -> Any:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "vocab_size": VOCABULARY}
    return T5ForConditionalGeneration(T5Config(num_layers=2, decoder_start_token_id=0, **sizes)).eval()


def copies(model: Any, name: str = "default") -> dict[str, Tensor]:
    """The trained copies by the full names of the parameters they stand for."""
    return {
        f"{path}.{key}": copy
        for path, host in adapters_of(model).hosts.items()
        if (replacement := host.replacement(name)) is not None
        for key, copy in replacement.tensors().items()
    }


@pytest.mark.parametrize(("family", "part"), CASES)
def test_gradients_are_those_of_an_unfrozen_model(family: str, part: str) -> None:
    """A head that trains alone is untied; everything else sees each tied tensor's whole gradient."""
    plain = MODELS[family]().double().requires_grad_(True)
    if part == "head":
        plain.lm_head.weight = torch.nn.Parameter(plain.lm_head.weight.detach().clone())
    model = MODELS[family]().double()
    inject(model, CONFIGS[part])
    losses = [one(input_ids=tokens(), labels=tokens()).loss for one in (plain, model)]
    assert losses[0] == losses[1]
    for loss in losses:
        loss.backward()
    expected = dict(plain.named_parameters(remove_duplicate=False))
    found = copies(model)
    assert found and all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
    for name, copy in found.items():
        assert copy.grad is not None and (copy.grad - expected[name].grad).abs().max() <= 1e-12, name
    if part == "full":
        assert found.keys() == expected.keys()


@pytest.mark.parametrize(("family", "part"), [*CASES, ("bert", "full"), ("bert", "norms"), ("bert", "bitfit")])
def test_the_plan_counts_what_trains(family: str, part: str, tmp_path: Path) -> None:
    model = {**MODELS, "bert": bert}[family]()
    model.save_pretrained(tmp_path)
    config = CONFIGS[part]
    inject(model, config)
    method = methods.get(config.method)
    method.check_model(inspect_model(tmp_path), config)
    trained = sum(parameter.numel() for parameter in adapter_parameters(model))
    assert method.trainable_parameters(inspect_model(tmp_path), config) == trained


def test_which_parameters_are_meant() -> None:
    names = {}
    for family, make in (("llama", llama), ("gpt2", gpt2), ("t5", t5)):
        for part in ("last_blocks", "layernorm", "head"):
            model = make()
            inject(model, some(part, 1))
            names[family, part] = set(copies(model))
    assert names["llama", "head"] == {"lm_head.weight"} == names["t5", "head"] == names["gpt2", "head"]
    own = {name for name, _ in llama().named_parameters()}
    last = {name for name in own if ".layers.1." in name}
    assert names["llama", "last_blocks"] == last | {"model.norm.weight", "lm_head.weight"}
    assert names["llama", "layernorm"] == {name for name in own if "norm" in name}
    own = {name for name, _ in gpt2().named_parameters()}
    behind = {"transformer.ln_f.weight", "transformer.ln_f.bias"}
    assert names["gpt2", "last_blocks"] == {name for name in own if ".h.1." in name} | behind
    assert names["gpt2", "layernorm"] == {name for name in own if ".ln_" in name}
    own = {name for name, _ in t5().named_parameters()}
    last = {name for name in own if name.startswith("decoder.block.1.")}
    assert names["t5", "last_blocks"] == last | {"decoder.final_layer_norm.weight"}
    assert names["t5", "layernorm"] == {name for name in own if "layer_norm" in name}
    model = gpt2()
    inject(model, BITFIT)
    assert set(copies(model)) == {name for name, _ in gpt2().named_parameters() if name.endswith(".bias")}


def test_masters_are_float32_on_a_bfloat16_base() -> None:
    model = tied_llama().bfloat16()
    before = logits(model, tokens())
    inject(model, FULL)
    assert torch.equal(logits(model, tokens()), before)
    assert {copy.dtype for copy in copies(model).values()} == {torch.float32}
    assert model.lm_head.weight.dtype == torch.bfloat16  # models that read a weight see the dtype they compute in
    one = copies(model)
    assert one["lm_head.weight"] is one["model.embed_tokens.weight"]


@pytest.mark.parametrize(("family", "part"), CASES)
def test_saved_loaded_and_merged(family: str, part: str, tmp_path: Path) -> None:
    base = MODELS[family]()
    base.save_pretrained(tmp_path / "base")
    model = MODELS[family]()
    inject(model, CONFIGS[part])
    shake(model)
    expected = logits(model, tokens())
    assert (expected - logits(base, tokens())).abs().max() > 1e-3
    save_adapter(model, tmp_path / "adapter")
    load_adapter(base, tmp_path / "adapter")
    assert torch.equal(logits(base, tokens()), expected)
    folder = merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    plain, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(logits(plain.eval(), tokens()), expected)
    is_tied = family != "llama" and part != "head"
    assert (plain.lm_head.weight is plain.get_input_embeddings().weight) == is_tied
    names = set(inspect_model(folder).tensors)
    assert names == set(inspect_model(tmp_path / "base").tensors) | ({"lm_head.weight"} if part == "head" else set())


def test_an_encoder_decoder_keeps_its_ties(tmp_path: Path) -> None:
    model = t5()
    model.save_pretrained(tmp_path / "base")
    inject(model, FULL)
    shake(model)
    expected = model(input_ids=tokens(), decoder_input_ids=tokens()).logits
    save_adapter(model, tmp_path / "adapter")
    folder = merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    plain, report = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(plain.eval()(input_ids=tokens(), decoder_input_ids=tokens()).logits, expected)
    assert plain.config.tie_word_embeddings == t5().config.tie_word_embeddings


def test_merging_in_memory_keeps_the_tie() -> None:
    model = tied_llama()
    inject(model, FULL)
    shake(model)
    expected = logits(model, tokens())
    merge(model)
    assert torch.equal(logits(model, tokens()), expected)
    assert model.lm_head.base_layer.weight is model.model.embed_tokens.base_layer.weight
    unmerge(model)
    remove_adapter(model, "default")
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("config", [FULL, some("last_blocks", 1), some("layernorm"), BITFIT])
def test_a_resumed_run_is_the_unbroken_one(config: AdapterConfig, tmp_path: Path) -> None:
    def make() -> Any:
        return toy_trainer(toy_config(adapter=config, epochs=2.0), model=toy_gpt2())

    unbroken = make()
    losses = [metrics.loss for metrics in unbroken.steps()]
    assert losses[-1] < losses[0]
    broken, resumed = make(), make()
    for _ in range(3):
        next(broken.steps())
    load_checkpoint(resumed, save_checkpoint(broken, tmp_path))
    for _ in resumed.steps():
        pass
    assert same_bits(trained_state(unbroken), trained_state(resumed))


def test_a_new_head_trains_beside() -> None:
    model = bert()
    inject(model, AdapterConfig(method="bitfit", modules_to_save=("classifier",)))
    assert {"classifier.weight", "classifier.bias"} <= set(copies(model))


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="BitFit trains biases, and this model has none"):
        inject(llama(), BITFIT)
    llama().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has none"):
        methods.get("bitfit").check_model(inspect_model(tmp_path), BITFIT)
    for refuse in (
        lambda config: inject(llama(), config),
        lambda config: methods.get("partial").check_model(inspect_model(tmp_path), config),
    ):
        with pytest.raises(ConfigError, match="has 2 blocks, not 3"):
            refuse(some("last_blocks", 3))
    with pytest.raises(ConfigError, match=r"r is 8, which Full fine-tuning cannot honour"):
        AdapterConfig(method="full", r=8)
    with pytest.raises(ConfigError, match="matches no layer"):
        inject(gpt2(), AdapterConfig(method="bitfit", modules_to_save=("clasifier",)))


def test_a_quantised_weight_cannot_train() -> None:
    model = llama(hidden_size=64, intermediate_size=64)
    quantize_model(model, "nf4")
    for config in (FULL, some("last_blocks", 1)):
        with pytest.raises(ConfigError, match="is quantised"):
            inject(model, config)
    inject(model, some("layernorm"))
