"""Sequence to sequence, for T5 and BART, against transformers: loss, decoding, training, files and merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from core.adapters import inject, set_adapter
from core.config import AdapterConfig, DataConfig, GenerationConfig, OptimConfig, TrainConfig
from core.data.records import Message, Record
from core.detokenize import Detokenizer
from core.errors import DatasetError
from core.export.peft import load_adapter, save_adapter
from core.generate import generate
from core.merge import merge_to_folder, verify_merge
from core.models import inspect_model, load_model
from core.tasks.question_answering import QuestionAnswering
from core.train import Trainer
from tests.core.toy import toy_records, toy_tokenizer

FAMILIES = ["t5", "bart"]


def toy_t5() -> Any:
    tokenizer = toy_tokenizer()
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id, initializer_factor=0.5,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def toy_bart() -> Any:
    tokenizer = toy_tokenizer()
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=128, dropout=0.0,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        decoder_start_token_id=tokenizer.eos_token_id, forced_eos_token_id=None, init_std=0.2,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


def toy(family: str) -> Any:
    return {"t5": toy_t5, "bart": toy_bart}[family]()


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_that_of_each_row_by_itself(family: str) -> None:
    """Neither side's padding is seen: the batch's loss is the sum of transformers' own for each pair alone."""
    model, task = toy(family).double(), QuestionAnswering()
    task.bind(model, TrainConfig())
    config = TrainConfig(data=DataConfig(validation_share=0.0))
    examples = task.prepare(toy_records(6), toy_tokenizer(), config, 0, None, 0).train
    assert len({len(example.input_ids) for example in examples}) > 1
    assert len({len(example.target_ids) for example in examples}) > 1
    alone = 0.0
    for example in examples:
        pair = {"input_ids": torch.tensor([example.input_ids]), "labels": torch.tensor([example.target_ids])}
        alone += model(**pair).loss.item() * example.n_trained
    batch = task.collate(examples, toy_tokenizer().pad_token_id)
    assert task.loss_sum(model, batch).item() == pytest.approx(alone, rel=1e-9)
    assert batch.n_tokens == sum(len(example.input_ids) + len(example.target_ids) for example in examples)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_transformers(family: str) -> None:
    """Also in a batch whose rows differ in length, end at different times, and carry different adapters."""
    model, tokenizer = toy(family), toy_tokenizer()
    inject(model, AdapterConfig(r=4), "one")
    for name, parameter in model.named_parameters():
        if "adapters.one" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    prompts = [record.messages[:-1] for record in toy_records(4)]
    names = [None, "one", None, "one"]
    ours = generate(model, tokenizer, prompts, names, GenerationConfig(max_new_tokens=12, temperature=0.0))
    for prompt, name, answer in zip(prompts, names, ours, strict=True):
        set_adapter(model, name)
        ids = torch.tensor([tokenizer(prompt[0].content)["input_ids"]])
        theirs = model.generate(ids, max_new_tokens=12, do_sample=False, num_beams=1)[0]
        words = Detokenizer(tokenizer)
        for token in theirs[1:].tolist():
            if token == tokenizer.eos_token_id:
                break
            words.add(token)
        assert answer == words.text


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_learns_is_saved_loaded_and_merged(family: str, tmp_path: Path) -> None:
    model, tokenizer = toy(family), toy_tokenizer()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    info = inspect_model(tmp_path / "base")
    assert (info.family, info.hidden_size) == ("seq2seq", 32) and len(info.linear_targets()) >= 6
    config = TrainConfig(
        adapter=AdapterConfig(r=8), optim=OptimConfig(learning_rate=2e-2), max_steps=25, epochs=100, batch_size=8,
        eval_every=25, patience=0,
    )  # fmt: skip
    model, tokenizer = load_model(tmp_path / "base", device="cpu")
    trainer = Trainer(model, tokenizer, toy_records(24), config)
    assert isinstance(trainer.task, QuestionAnswering)
    losses = []
    for metrics in trainer.steps():
        losses.append(metrics.loss)
        if metrics.step == 1:
            trainer.gradients.add(trainer.task.collate(trainer.examples.train[:4], 0), 10)
            assert all(parameter.grad is not None and parameter.grad.any() for parameter in trainer.parameters)
            trainer.optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    save_adapter(model, tmp_path / "adapter")
    again, _ = load_model(tmp_path / "base", device="cpu")
    load_adapter(again, tmp_path / "adapter")
    asked = [toy_records(3)[2].messages[:-1]]
    greedy = GenerationConfig(max_new_tokens=8, temperature=0.0)
    assert generate(again, tokenizer, asked, config=greedy) == generate(model, tokenizer, asked, config=greedy)
    merged = merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    check = verify_merge(tmp_path / "base", tmp_path / "adapter", merged)
    assert check.max_logit_difference < 1e-4 and check.tokens == 128
    plain, _ = load_model(merged, device="cpu")
    assert generate(plain, tokenizer, asked, config=greedy) == generate(model, tokenizer, asked, config=greedy)


def test_long_texts_are_cut_before_their_end_token() -> None:
    record = Record(1, (Message("user", "a long question " * 9), Message("assistant", "a long answer " * 9)))
    config = TrainConfig(data=DataConfig(validation_share=0.0, max_length=10))
    example = QuestionAnswering().prepare([record], toy_tokenizer(), config, 0, None, 0).train[0]
    assert len(example.input_ids) == len(example.target_ids) == 10
    assert example.target_ids[-1] == toy_tokenizer().eos_token_id


def test_rows_without_an_answer_are_refused() -> None:
    with pytest.raises(DatasetError, match="Row 3 has no answer"):
        QuestionAnswering().prepare([Record(3, text="plain")], toy_tokenizer(), TrainConfig(), 0, None, 0)
