"""A toy model folder and dataset, made in a second: real files of a real architecture, random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.models import inspect_model
from studio.artifacts import Library, model_row
from studio.tables import DatasetRow, ModelRow
from tests.live import LiveStudio

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ANIMALS = ("cat", "dog", "cow", "hen", "pig", "owl", "bee", "ant", "fox", "elk")
SOUNDS = ("meow", "woof", "moo", "cluck", "oink", "hoot", "buzz", "tick", "yip", "bugle")


def make_tokenizer(folder: Path) -> Any:
    """A byte-level tokenizer with the ChatML template, saved in a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    backend.train_from_iterator([" ".join(ANIMALS + SOUNDS)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_model(folder: Path, **size: int) -> Path:
    """A Llama of two layers, 32 wide unless `size` says so, with a byte-level tokenizer and the ChatML template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, **size}
    config = LlamaConfig(
        **size, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=128, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def animal_rows(rows: int = 60) -> list[dict[str, Any]]:
    """Questions and answers about what animals say."""
    return [
        {"question": f"{number} What does the {ANIMALS[number % 10]} say?", "answer": SOUNDS[number % 10]}
        for number in range(rows)
    ]


def write_dataset(path: Path, rows: int = 60) -> Path:
    """`animal_rows` as a file."""
    return write_rows(path, animal_rows(rows))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def register_model(live: LiveStudio, folder: Path, name: str = "toy") -> ModelRow:
    """File a model folder in a library, used in place."""
    row = model_row(inspect_model(folder), name=name, source=str(folder), folder=str(folder))
    library(live).add(row)
    return row


def register_dataset(live: LiveStudio, rows: int = 60) -> DatasetRow:
    """File `animal_rows` in a library."""
    return register_rows(live, animal_rows(rows), "animals")


def register_rows(live: LiveStudio, rows: Sequence[Mapping[str, Any]], name: str = "rows") -> DatasetRow:
    """Write rows into a workspace and file them in its library."""
    from core.data.dataset import inspect_dataset
    from studio.workspace import new_id

    dataset_id = new_id()
    folder = live.workspace.dataset_folder(dataset_id)
    folder.mkdir()
    path = write_rows(folder / "data.jsonl", rows)
    found = inspect_dataset(path)
    row = DatasetRow(
        id=dataset_id, name=name, file_name=f"{name}.jsonl", stored_name="data.jsonl", format=found.format,
        rule=found.rule, share=found.share, rows=len(found), bad_rows=0, sha256=found.sha256,
        size_bytes=path.stat().st_size,
    )  # fmt: skip
    library(live).add(row)
    return row


def library(live: LiveStudio) -> Library:
    return Library(live.database, live.workspace)
