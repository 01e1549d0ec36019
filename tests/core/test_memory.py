"""The memory estimate against what is counted on real modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    Gemma2Config,
    T5Config,
)

from core.adapters import inject
from core.config import AdapterConfig, TrainConfig
from core.loss import find_head, loss_sum
from core.memory import estimate_memory
from core.methods import methods
from core.models import ModelInfo, inspect_model
from core.ops import precision
from core.ops.fast_path import FastPath
from core.score_memory import EAGER, bytes_per_score
from tests.core.toy import toy_llama


def untied(**changes: Any) -> Any:
    return toy_llama(tie_word_embeddings=False, **changes)


def saved(model: Any, folder: Path) -> ModelInfo:
    model.save_pretrained(folder)
    return inspect_model(folder)


def kept_bytes(model: Any, rows: int, length: int, path: FastPath) -> int:
    """Bytes that autograd keeps for the backward pass, beside the parameters; each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    head = find_head(model)
    ids = torch.zeros(rows, length, dtype=torch.long)
    model.train()
    with path.running(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_sum(model, head, ids, ids)
    return sum(sizes.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fast_path", [False, True])
def test_activations_are_within_a_quarter_of_what_autograd_keeps(
    tmp_path: Path, dropout: float, dtype: str, fast_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_half_products", lambda: True)  # as on a GPU
    shape = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
    model = untied(**shape).to(getattr(torch, dtype))
    info = saved(model, tmp_path)
    config = TrainConfig(adapter=AdapterConfig(r=4, lora_dropout=dropout), fast_path=fast_path)
    inject(model, config.adapter)
    wanted = kept_bytes(model, 2, 64, FastPath(model, fast_path))
    estimate = estimate_memory(info, config, 2, 64, dtype)
    assert 0.75 * wanted < estimate["activations"] < 1.25 * wanted


def test_the_other_parts_are_exact(tmp_path: Path) -> None:
    model = untied()
    info = saved(model, tmp_path)
    estimate = estimate_memory(info, TrainConfig(adapter=AdapterConfig(r=4)), 2, 32, "float32")
    trained = methods.get("lora").trainable_parameters(info, AdapterConfig(r=4))
    assert estimate["weights"] == sum(p.nbytes for p in model.parameters())
    assert estimate["adapter"] == estimate["gradients"] == 4 * trained
    assert estimate["optimizer"] == 8 * trained
    assert estimate_memory(info, TrainConfig(dtype="bfloat16"), 2, 32)["weights"] == estimate["weights"] // 2
    assert estimate_memory(info, TrainConfig(), 10**6, 32)["logits"] == 3 << 28  # chunks bound it


HEADS = 4


def _bert(dropout: float) -> Any:
    return BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=128, vocab_size=64,
        attention_probs_dropout_prob=dropout, hidden_dropout_prob=0.0, max_position_embeddings=1024,
    )  # fmt: skip


def _gemma2() -> Any:
    return Gemma2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=2, head_dim=16,
        intermediate_size=128, vocab_size=64,
    )  # fmt: skip


def _t5(dropout: float) -> Any:
    return T5Config(
        d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=HEADS, vocab_size=64, dropout_rate=dropout,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip


QUADRATIC: dict[str, tuple[type, Callable[[], Any]]] = {
    "bert": (AutoModelForSequenceClassification, lambda: _bert(0.0)),
    "bert with dropout": (AutoModelForSequenceClassification, lambda: _bert(0.1)),
    "bloom": (AutoModelForCausalLM, lambda: BloomConfig(hidden_size=64, n_layer=2, n_head=HEADS, vocab_size=64)),
    "gemma2": (AutoModelForCausalLM, _gemma2),
    "t5": (AutoModelForSeq2SeqLM, lambda: _t5(0.0)),
    "t5 with dropout": (AutoModelForSeq2SeqLM, lambda: _t5(0.1)),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", QUADRATIC)
def test_what_grows_with_the_square_of_the_length_is_counted(tmp_path: Path, name: str, dtype: str) -> None:
    """Measured on transformers' own attention, at two lengths: what is more than twice as much is quadratic."""
    kind, config = QUADRATIC[name]
    model: Any = kind.from_config(config()).to(getattr(torch, dtype))  # type: ignore[attr-defined]
    info = saved(model, tmp_path)
    inject(model, AdapterConfig(r=2))
    model.train()
    kept = [_kept_by_forward(model, length) for length in (256, 512)]
    a_score = (kept[1] - 2 * kept[0]) / (512**2 - 2 * 256**2) / (info.heads * info.layers)
    wanted = bytes_per_score(info, 4 if dtype == "float32" else 2, on_gpu=False)
    assert wanted == pytest.approx(a_score, abs=0.35), "bytes a score"
    estimates = [estimate_memory(info, TrainConfig(), 3, length, dtype)["activations"] for length in (256, 512)]
    assert estimates[1] - 2 * estimates[0] == 3 * wanted * info.heads * info.layers * (512**2 - 2 * 256**2)


def _kept_by_forward(model: Any, length: int) -> int:
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids = torch.ones(1, length, dtype=torch.long)
    labels = {"labels": ids[:, :8]} if model.config.is_encoder_decoder else {}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **labels)
    return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in own)


# Attention that is not of every pair of positions, or none.
NOT_QUADRATIC = {
    "big_bird", "bigbird_pegasus", "falcon_mamba", "fnet", "led", "longformer", "longt5", "mamba", "mamba2", "mra",
    "nystromformer", "perceiver", "reformer", "rwkv", "xlstm", "yoso",
}  # fmt: skip


@pytest.mark.slow
def test_every_model_without_a_kernel_for_attention_is_known() -> None:
    from transformers.models.auto import modeling_auto

    tables = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SEQUENCE_CLASSIFICATION")
    slow = set()
    for table in (getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES") for name in tables):
        for model_type, names in table.items():
            for name in (names,) if isinstance(names, str) else names:
                if not getattr(transformers, name)._supports_sdpa:
                    slow.add(model_type)
    assert slow == EAGER | NOT_QUADRATIC
