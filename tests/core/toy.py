"""A model, a tokenizer and a dataset small enough to train in a test, all built here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig
from core.data.records import Message, Record
from core.train import Trainer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LENGTH = 128


@functools.cache
def toy_tokenizer() -> Any:
    """Byte-level BPE with a ChatML template; pad and end token are the same one, as in many real models."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["What is the sum of two numbers? It is user assistant system"] * 2, trainer)
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def toy_llama(seed: int = 0, **changes: Any) -> Any:
    """A frozen Llama of two layers with tied embeddings."""
    torch.manual_seed(seed)
    tokenizer = toy_tokenizer()
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).requires_grad_(False).eval()


def toy_gpt2(seed: int = 0) -> Any:
    """A frozen GPT-2 of two layers, which has dropout of its own."""
    torch.manual_seed(seed)
    tokenizer = toy_tokenizer()
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=len(tokenizer), n_positions=LENGTH,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )  # fmt: skip
    return GPT2LMHeadModel(config).requires_grad_(False).eval()


def toy_records(count: int = 24) -> list[Record]:
    """Questions of different lengths with their answers."""
    return [
        Record(
            row=index + 1,
            messages=(
                Message("user", f"What is {index} + {index * 7 % 11}{' please' * (index % 4)}?"),
                Message("assistant", f"It is {index + index * 7 % 11}{'!' * (index % 3)}"),
            ),
        )
        for index in range(count)
    ]


def toy_config(**changes: Any) -> TrainConfig:
    """Settings for a short run with adapter dropout on."""
    settings: dict[str, Any] = {
        "adapter": AdapterConfig(r=4, lora_alpha=8, lora_dropout=0.1),
        "data": DataConfig(validation_share=0.2),
        "optim": OptimConfig(learning_rate=1e-2),
        "epochs": 4.0,
        "batch_size": 4,
        "micro_batch_size": 2,
        "eval_every": 2,
        "seed": 7,
    }
    return TrainConfig(**{**settings, **changes})


def toy_trainer(
    config: TrainConfig | None = None, records: Sequence[Record] | None = None, model: Any = None
) -> Trainer:
    """A trainer of a fresh toy model."""
    return Trainer(model or toy_llama(), toy_tokenizer(), records or toy_records(), config or toy_config())


def trained_state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of what a run changes: the trained weights and the optimizer's state."""
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    state = {names[id(parameter)]: parameter.detach().clone() for parameter in trainer.parameters}
    for parameter, moments in trainer.optimizer.state.items():
        state |= {f"{names[id(parameter)]}.{moment}": value.clone() for moment, value in moments.items()}
    return state


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two states have the same names and exactly the same numbers."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
