"""What the token view shows is what the trainer trains on, token for token."""

from __future__ import annotations

from typing import Any

import pytest

from core.data.batching import IGNORED, collate
from core.data.records import Message, Record
from core.data.template import tokenize, tokenize_all
from core.data.token_view import LengthMeter, pieces
from core.errors import DatasetError
from tests.core.data.test_template_masks import CHATS, FAMILIES, GEMMA, IM, QWEN25, record


@pytest.mark.parametrize("name", FAMILIES)
def test_the_marked_tokens_are_the_labels_of_training(make_tokenizer: Any, name: str) -> None:
    family = FAMILIES[name]
    tokenizer = make_tokenizer(family.specials, family.template, family.eos, family.bos, kind=family.kind)
    for chat in CHATS.values():
        if chat[0][0] == "system" and not family.system:
            continue
        example = tokenize(record(chat), tokenizer)
        labels = collate([example], 0).labels[0]
        shown = pieces(example, tokenizer)
        assert "".join(text for text, _ in shown).replace(" ", "") == tokenizer.decode(
            example.input_ids, clean_up_tokenization_spaces=False
        ).replace(" ", "")
        trained = "".join(text for text, state in shown if state == "trained")
        ids = [token for token, label in zip(example.input_ids, labels, strict=True) if label != IGNORED]
        assert len(ids) == example.n_trained
        assert trained.replace(" ", "") == tokenizer.decode(ids, clean_up_tokenization_spaces=False).replace(" ", "")


def test_what_is_too_far_back_is_marked_as_cut(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(IM, QWEN25, "<|im_end|>")
    example = tokenize(record(CHATS["multi"]), tokenizer)
    states = [state for _, state in pieces(example, tokenizer, max_length=20)]
    assert states.count("cut") == len(example.input_ids) - 20 and states[-1] == "cut" and "cut" not in states[:20]


def test_the_figures_are_those_of_the_examples(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(IM, QWEN25, "<|im_end|>")
    records = [
        Record(n, (Message("user", "the fox " * n), Message("assistant", "fine " * (n % 5 + 1)))) for n in range(1, 301)
    ]
    examples = tokenize_all(records, tokenizer)
    seen: list[tuple[int, int]] = []
    meter = LengthMeter(records, tokenizer, progress=lambda done, total: seen.append((done, total)))
    for wanted in (0, 40, 10_000):
        found = meter.measure(wanted)
        cut = [example.cut(found.max_length) for example in examples]
        assert found.tokens == sum(len(example.input_ids) for example in cut)
        assert found.trained == sum(example.n_trained for example in cut)
        assert found.cut_rows == sum(len(example.input_ids) > found.max_length for example in examples)
        assert found.lost_rows == sum(not example.n_trained for example in cut)
        lengths = sorted(len(example.input_ids) for example in examples)
        assert found.percentiles == {"50": lengths[149], "95": lengths[284], "99": lengths[296], "100": lengths[-1]}
        assert sum(found.counts) == 300 and len(found.edges) == len(found.counts) + 1
    assert meter.measure(0, context_length=30).max_length == 30
    assert meter.measure(0).max_length % 64 == 0 and seen[-1] == (300, 300)


def test_rows_that_the_template_refuses_are_counted(make_tokenizer: Any) -> None:
    gemma = FAMILIES["gemma"]
    tokenizer = make_tokenizer(gemma.specials, GEMMA, gemma.eos, gemma.bos)
    good, bad = record(CHATS["single"]), record(CHATS["system"])
    found = LengthMeter([good] * 7 + [bad] * 2, tokenizer).measure()
    assert (found.rows, found.refused) == (7, 2) and "System role not supported" in found.refusal
    with pytest.raises(DatasetError, match="System role"):
        LengthMeter([bad], tokenizer)
