"""How many tokens the rows of a dataset take under a model's tokenizer, without torch or transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.data.records import Record
from core.errors import ModelError

SAMPLE_ROWS = 2000
_TEMPLATE_TOKENS_PER_MESSAGE = 5  # what chat templates put around a message, in the median of the common ones
_CHARACTERS_PER_TOKEN = 3.5  # used only when the model has no tokenizer.json


def token_lengths(model_folder: Path, records: Sequence[Record]) -> list[int]:
    """About how many tokens each text takes, two texts of each preference pair; at most SAMPLE_ROWS rows are measured.

    An estimate for planning: the exact count needs the chat template, which only the worker renders.
    """
    step = max(1, len(records) // SAMPLE_ROWS)
    chosen = [side for record in records[::step] for side in record.sides]
    texts = [record.text or "\n".join(message.content for message in record.messages) for record in chosen]
    around = [_TEMPLATE_TOKENS_PER_MESSAGE * len(record.messages) for record in chosen]
    return [tokens + extra for tokens, extra in zip(_count(model_folder, texts), around, strict=True)]


def _count(model_folder: Path, texts: list[str]) -> list[int]:
    path = model_folder / "tokenizer.json"
    if not path.exists():
        return [int(len(text) / _CHARACTERS_PER_TOKEN) + 1 for text in texts]
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises nothing narrower
        raise ModelError(f"The tokenizer of {model_folder.name!r} is damaged.", "Download the model again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
