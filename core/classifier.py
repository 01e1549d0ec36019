"""Sequence classifiers: a pretrained model with a new head, and the labels of a text with their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from core.adapters.targets import base_modules
from core.errors import ModelError
from core.export.task_file import LabelFacts
from core.file_layout import FileLayout, read_entries
from core.loss import device_of
from core.mode import mode
from core.models import load_model
from core.prompt import virtual_ids
from core.quantize.size import NONE
from core.weight_files import weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LIKELY = 0.5  # from this probability on a text has a label, where it may have several
SHOWN_LABELS = 10


def load_classifier(
    source: str | Path,
    labels: Sequence[str],
    dtype: str = "float32",
    device: str | None = None,
    seed: int = 0,
    multi_label: bool = False,
    quantization: str = NONE,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained model with a new classification head, frozen and in eval mode, and its tokenizer.

    The head starts random from `seed`: name it in `modules_to_save` (`head_of`), so that it trains. Raises ModelError
    when the model has no classifier in transformers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, tokenizer = load_model(
                source, dtype, device, quantization, kind="AutoModelForSequenceClassification",
                num_labels=len(labels), ignore_mismatched_sizes=True, **_names(labels, multi_label),
            )  # fmt: skip
        except ModelError as error:
            raise ModelError(error.what.replace("cannot be loaded", "cannot classify"), error.fix) from error
    model.config.pad_token_id = tokenizer.pad_token_id  # decoders look for the last token that is not padding
    return model, tokenizer


def _names(labels: Sequence[str], multi_label: bool) -> dict[str, Any]:
    values = LabelFacts(tuple(labels), multi_label).config_values()
    return {**values, "id2label": dict(enumerate(labels))}


def head_of(model: nn.Module) -> tuple[str, ...]:
    """What a classifier has outside of its pretrained body, for `modules_to_save`: its head."""
    body = str(getattr(model, "base_model_prefix", ""))
    has_weights = {name.partition(".")[0] for name, _ in model.named_parameters()}
    return tuple(name for name, _ in model.named_children() if name != body and name in has_weights)


def untrained(model: nn.Module, folder: Path) -> tuple[str, ...]:
    """Modules of a classifier that its pretrained files have no weights for, and so start random: head and pooler."""
    entries = {name: entry for path in weight_files(folder) for name, entry in read_entries(path).items()}
    layout = FileLayout(model, entries)
    named = model.named_parameters(remove_duplicate=False)  # one that is tied is known by any of its names
    known = {id(parameter) for name, parameter in named if layout.has(name)}
    found = []
    for path, module in base_modules(model).items():
        own = [id(parameter) for parameter in module.parameters(recurse=False)]
        if own and known.isdisjoint(own):
            found.append(path)
    head = head_of(model)
    return (*head, *(path for path in found if path.partition(".")[0] not in head))


@torch.no_grad()
def probabilities(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Probabilities (B, L) of the labels for texts (B, T), float32: each for itself where a text may have several."""
    device = device_of(model)
    with mode(model, training=False):
        logits = model(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device)).logits.float()
    is_multi = LabelFacts((), True).config_values()["problem_type"] == model.config.problem_type
    shares: Tensor = logits.sigmoid() if is_multi else logits.softmax(-1)
    return shares


def label_text(model: Any, tokenizer: Any, text: str, labels: Sequence[str]) -> str:
    """The labels of one text by the active adapter, the likeliest first, a line each: `positive  97.3 %`."""
    room = int(getattr(model.config, "max_position_embeddings", 0) or 0)
    before = virtual_ids(model)
    limit = {"truncation": True, "max_length": room - len(before)} if room else {}
    ids = torch.tensor([[*before, *tokenizer(text, **limit)["input_ids"]]])
    shares = probabilities(model, ids, torch.ones_like(ids))[0].tolist()
    ranked = sorted(zip(shares, labels, strict=True), key=lambda pair: -pair[0])[:SHOWN_LABELS]
    return "\n".join(f"{name}  {share:.1%}".replace("%", " %") for share, name in ranked)
