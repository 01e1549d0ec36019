"""Texts and pairs have the tokens that transformers gives each alone, made anew or kept, in one thread or several."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from core.data import text_tokens, token_parts
from core.data.records import Message, Record
from core.data.text_tokens import pair_of, text_of, tokenize_pairs, tokenize_texts
from core.data.token_cache import TokenCache
from core.errors import DatasetError
from tests.core.data.test_tokenized import SPECIALS, chats

ROWS = 100
END = "<|im_end|>"


class TwoLanguages(PreTrainedTokenizerFast):
    """Frames targets otherwise than sources, as the tokenizers of mBART and NLLB do."""

    def _switch_to_input_mode(self) -> None:
        self._frame("<s>")

    def _switch_to_target_mode(self) -> None:
        self._frame(END)
        time.sleep(0.002)  # long enough for another thread to meet the change, were there one

    def _frame(self, last: str) -> None:
        ends = [(last, self.convert_tokens_to_ids(last))]
        self.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {last}", special_tokens=ends)


@pytest.fixture(params=["plain", "two languages"])
def tokenizer(make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    monkeypatch.setattr(token_parts, "PART", 32)
    monkeypatch.setattr(token_parts, "CHUNK", 8)
    plain = make_tokenizer((*SPECIALS, "<s>"), None, END)
    if request.param == "plain":
        return plain
    return TwoLanguages(tokenizer_object=plain.backend_tokenizer, eos_token=END, pad_token=plain.pad_token)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_pairs_and_texts_are_those_of_each_row_alone(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(token_parts, "THREADS", threads)
    records = chats(ROWS)
    table = tokenize_pairs(records, tokenizer)
    assert table.rows.tolist() == [record.row for record in records]
    for record, example in zip(records, table, strict=True):
        source, target = pair_of(example)
        assert list(source) == tokenizer("\n\n".join(turn.content for turn in record.messages[:-1]))["input_ids"]
        alone = tokenizer(text_target=record.messages[-1].content)["input_ids"]
        end = [] if alone and alone[-1] == tokenizer.eos_token_id else [tokenizer.eos_token_id]
        assert list(target) == alone + end and example.n_trained == len(target)
    for limit in (0, 5):
        cut = {"truncation": True, "max_length": limit} if limit else {}
        texts = tokenize_texts(records, tokenizer, limit)
        assert [list(one.input_ids) for one in texts] == [
            tokenizer(text_of(row), **cut)["input_ids"] for row in records
        ]
        assert not texts.trained.any()


def test_what_was_kept_is_found_for_the_same_rows_and_way_only(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    original = text_tokens._part
    monkeypatch.setattr(text_tokens, "_part", lambda chunk, encode: (made.extend(chunk), original(chunk, encode))[1])
    records, cache = chats(ROWS), TokenCache(tmp_path)

    def anew(rows: list[Record], way: Any, *settings: int) -> int:
        made.clear()
        found = way(rows, tokenizer, *settings, cache=cache)
        count = len(made)
        assert found == way(rows, tokenizer, *settings)
        return count

    assert anew(records, tokenize_pairs) == ROWS and anew(records, tokenize_pairs) == 0
    assert anew(records, tokenize_texts) == ROWS and anew(records, tokenize_texts) == 0
    assert anew(records, tokenize_texts, 5) == ROWS and anew(records, tokenize_texts, 6) == ROWS
    changed = replace(records[40], messages=(*records[40].messages[:-1], Message("assistant", "new")))
    assert anew([*records[:40], changed, *records[41:]], tokenize_pairs) == 32
    tokenizer.src_lang = "fr"
    assert anew(records, tokenize_pairs) == ROWS


def test_rows_are_counted_and_the_first_bad_one_is_named(tokenizer: Any) -> None:
    seen: list[tuple[int, int]] = []
    tokenize_pairs(chats(20), tokenizer, lambda *at: seen.append(at))
    assert seen == [(8, 20), (16, 20), (20, 20)]
    unanswered, unasked = Record(77, (Message("user", "Hello"),)), Record(78, (Message("assistant", "Hello"),))
    with pytest.raises(DatasetError, match="Row 77 has no answer"):
        tokenize_pairs([*chats(30), unanswered, unasked, *chats(30)], tokenizer)
    with pytest.raises(DatasetError, match="Row 78 has no text"):
        tokenize_texts([*chats(30), unasked, *chats(30)], tokenizer)
