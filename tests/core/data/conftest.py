"""Small real tokenizers, trained on a few sentences, so that masks are tested without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The quick brown fox jumps over the lazy dog.\n\nHow are you today? Fine, thank you.",
    "system user assistant model human <s> [INST] [/INST] start end header",
    "def answer():\n    return 42\n\n\nYes. No. Hello there! Good bye, and thanks for all the fish.",
    "你好，世界。今天天气怎么样？ 🙂 café naïve",
]

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]


def byte_level() -> Tokenizer:
    """GPT-2's kind: bytes, and white space that joins with what follows it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


def byte_level_by_lines() -> Tokenizer:
    """Llama-3's and Qwen's kind: bytes, but line ends never join with the words after them."""
    tokenizer = byte_level()
    pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer


def metaspace() -> Tokenizer:
    """Llama-2's and Mistral's kind: a mark for spaces, one of them put before the text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fallback = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=fallback, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


KINDS = {"bytes": byte_level, "lines": byte_level_by_lines, "metaspace": metaspace}


def tokenizer_of(
    specials: Sequence[str], template: str | None, eos: str | None, bos: str | None = None, kind: str = "bytes",
    adds_bos: bool = False,
) -> PreTrainedTokenizerFast:  # fmt: skip
    """A fast tokenizer with these special tokens and this chat template."""
    backend = KINDS[kind]()
    backend.add_special_tokens(list(specials))
    if adds_bos and bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=bos)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    """Build a fast tokenizer with these special tokens and this chat template."""
    return tokenizer_of
