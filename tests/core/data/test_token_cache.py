"""Kept tokens are those that would be made, are found again only for the same input, and never read when damaged."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from core.config import DataConfig, TrainConfig
from core.data import template, token_cache, token_parts
from core.data.chat_template import written_on
from core.data.record_file import RecordFile, RecordWriter, lines_of
from core.data.records import Message, Record
from core.data.rendering import render
from core.data.template import tokenize_all
from core.data.token_cache import TokenCache, key_of, recipe_of
from core.data.token_view import LengthMeter
from core.data.tokenized import TokenizedExample, TokenTable
from core.errors import DatasetError
from core.examples import prepare_examples
from tests.core.data.test_tokenized import CHATML, SPECIALS, chats

ROWS = 100


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 32 rows, tokenised 8 at a time."""
    monkeypatch.setattr(token_parts, "PART", 32)
    monkeypatch.setattr(token_parts, "CHUNK", 8)


@pytest.fixture
def tokenizer(make_tokenizer: Any, small_parts: None) -> Any:
    return make_tokenizer(SPECIALS, CHATML, "<|im_end|>")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that are tokenised anew."""
    rows: list[int] = []

    def part(records: Any, *rest: Any) -> Any:
        rows.extend(record.row for record in records)
        return original(records, *rest)

    original = template._part
    monkeypatch.setattr(template, "_part", part)
    return rows


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.arrow"))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_tokens_made_kept_and_found(
    tmp_path: Path, tokenizer: Any, made: list[int], monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(token_parts, "THREADS", threads)
    records = chats(ROWS)
    plain = tokenize_all(records, tokenizer)
    made.clear()
    seen: list[tuple[int, int]] = []
    first = tokenize_all(records, tokenizer, progress=lambda *at: seen.append(at), cache=TokenCache(tmp_path))
    assert len(made) == ROWS and len(files(tmp_path)) == 4 and seen[0] == (8, ROWS) and seen[-1] == (ROWS, ROWS)
    made.clear()
    seen.clear()
    again = tokenize_all(records, tokenizer, progress=lambda *at: seen.append(at), cache=TokenCache(tmp_path))
    assert not made and seen == [(ROWS, ROWS)]
    assert plain == first == again and again.lengths.tolist() == plain.lengths.tolist()
    assert again.trained.tolist() == plain.trained.tolist()


def test_a_file_of_records_and_the_records_themselves_share_what_is_kept(
    tmp_path: Path, tokenizer: Any, made: list[int]
) -> None:
    records = chats(ROWS)
    with RecordWriter(tmp_path / "records.jsonl") as writer:
        for record in records:
            writer.add(record)
    stored = RecordFile(tmp_path / "records.jsonl")
    assert lines_of(stored, 30, 62) == lines_of(records, 30, 62)
    assert b"".join(lines_of(stored, at, at + 32) for at in (0, 32, 64, 96, 128)) == stored.path.read_bytes()
    cache = TokenCache(tmp_path / "cache")
    assert tokenize_all(stored, tokenizer, cache=cache) == tokenize_all(records, tokenizer)
    made.clear()
    assert tokenize_all(records, tokenizer, cache=cache) and not made


def test_what_decides_on_the_tokens_decides_on_the_files(
    tmp_path: Path, make_tokenizer: Any, tokenizer: Any, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    records, cache = chats(64), TokenCache(tmp_path)
    tokenize_all(records, tokenizer, cache=cache)

    def anew(records: list[Record], tokenizer: Any, completion_only: bool = True) -> int:
        made.clear()
        found = tokenize_all(records, tokenizer, completion_only, cache=cache)
        count = len(made)
        assert found == tokenize_all(records, tokenizer, completion_only)
        return count

    assert anew(records, tokenizer) == 0
    other = [*records[:40], replace(records[40], messages=(*records[40].messages[:-1], Message("assistant", "new")))]
    assert anew([*other, *records[41:]], tokenizer) == 32  # the part of the changed row alone
    assert anew(records[::-1], tokenizer) == 64
    assert anew(records, tokenizer, completion_only=False) == 64
    template_changed = make_tokenizer(SPECIALS, CHATML.replace("\n", " "), "<|im_end|>")
    assert anew(records, template_changed) == 64
    vocabulary_changed = make_tokenizer((*SPECIALS, "Hello"), CHATML, "<|im_end|>")
    assert anew(records, vocabulary_changed) == 64
    for bos in SPECIALS:
        assert anew(records, make_tokenizer(SPECIALS, "{{ bos_token }}" + CHATML, "<|im_end|>", bos)) == 64
    padded = make_tokenizer(SPECIALS, CHATML, "<|im_end|>")
    padded.pad_token = None
    padded(["a", "b c"], truncation=True, max_length=3)  # what somebody else left on decides on nothing
    assert anew(records, padded) == 0
    monkeypatch.setattr(token_cache, "_rules", lambda: "another version")
    assert anew(records, tokenizer) == 64


def test_a_template_that_tells_the_date_tells_that_of_the_run(make_tokenizer: Any) -> None:
    dated = make_tokenizer(SPECIALS, CHATML + "{{ strftime_now('%d %b %Y') }}", "<|im_end|>")
    timeless = make_tokenizer(SPECIALS, CHATML, "<|im_end|>")
    turns = [Message("user", "hi"), Message("assistant", "hello")]
    texts, recipes = [], []
    for day in (datetime(2024, 7, 26, 23, 59), datetime(2999, 1, 1)):
        with written_on(day):
            texts.append(render([turns], dated, False)[0])
            recipes.append([recipe_of(one, "True") for one in (dated, timeless)])
    assert texts[0].endswith("26 Jul 2024") and texts[1].endswith("01 Jan 2999")
    assert recipes[0][0] != recipes[1][0] and recipes[0][1] == recipes[1][1]
    assert render([turns], dated, False)[0].endswith(datetime.now().strftime("%d %b %Y"))


def test_an_interrupted_preparation_goes_on(tmp_path: Path, tokenizer: Any, made: list[int]) -> None:
    records, cache = chats(ROWS), TokenCache(tmp_path)

    def leave(done: int, total: int) -> None:
        if done >= 72:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize_all(records, tokenizer, progress=leave, cache=cache)
    assert len(files(tmp_path)) == 2
    made.clear()
    seen: list[int] = []
    table = tokenize_all(records, tokenizer, progress=lambda done, total: seen.append(done), cache=cache)
    assert seen[0] == 64 and made == list(range(65, ROWS + 1))
    assert table == tokenize_all(records, tokenizer)


def test_an_error_keeps_the_parts_before_it(tmp_path: Path, tokenizer: Any) -> None:
    bad = Record(77, (Message("user", "no answer"),))
    with pytest.raises(DatasetError, match="Row 77"):
        tokenize_all([*chats(76), bad, *chats(20)], tokenizer, cache=TokenCache(tmp_path))
    assert len(files(tmp_path)) == 2


def damages() -> list[Any]:
    def cut(path: Path) -> None:
        os.truncate(path, path.stat().st_size // 2)

    def emptied(path: Path) -> None:
        path.write_bytes(b"")

    def zeros(path: Path) -> None:
        path.write_bytes(bytes(path.stat().st_size))

    def another(path: Path) -> None:
        shutil.copy(next(other for other in files(path.parent) if other != path), path)

    def nameless(path: Path) -> None:
        path.rename(path.with_name(f"{path.name.split('.')[0]}.arrow"))

    return [cut, emptied, zeros, another, nameless]


@pytest.mark.parametrize("damage", damages(), ids=lambda one: one.__name__)
def test_a_damaged_file_is_noticed_and_made_anew(tmp_path: Path, tokenizer: Any, made: list[int], damage: Any) -> None:
    records, cache = chats(ROWS), TokenCache(tmp_path)
    good = tokenize_all(records, tokenizer)
    tokenize_all(records, tokenizer, cache=cache)
    damage(next(path for path in files(tmp_path) if path.name == next(iter(cache._names.values()))))
    made.clear()
    cache = TokenCache(tmp_path)
    assert tokenize_all(records, tokenizer, cache=cache) == good and len(made) == 32
    made.clear()
    assert tokenize_all(records, tokenizer, cache=cache) == good and not made


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    part = TokenTable.of([TokenizedExample((5, 7, 9), (False, True, True), 3)])._parts[0]
    TokenCache(tmp_path).write("k", part)
    path, content = files(tmp_path)[0], files(tmp_path)[0].read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert TokenCache(tmp_path).read("k") is None and not path.exists()


def test_a_full_disk_costs_the_next_run_time_and_nothing_else(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: Any) -> None:
        with path.open("wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    records = chats(ROWS)
    assert tokenize_all(records, tokenizer, cache=TokenCache(tmp_path)) == tokenize_all(records, tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_bounded_and_what_is_used_stays(tmp_path: Path, tokenizer: Any) -> None:
    cache = TokenCache(tmp_path)
    table = tokenize_all(chats(96), tokenizer, cache=cache)
    for age, path in enumerate(files(tmp_path)):
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / ".k.arrow.1").write_bytes(b"left by a killed process")
    os.utime(tmp_path / ".k.arrow.1", (1e9, 1e9))
    oldest, size = files(tmp_path)[2], files(tmp_path)[2].stat().st_size
    cache.read(oldest.name.split(".")[0])
    TokenCache(tmp_path, max_bytes=size + 100).trim()
    assert files(tmp_path) == [oldest] and list(tmp_path.iterdir()) == [oldest]
    assert table == tokenize_all(chats(96), tokenizer)  # still mapped


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path, tokenizer: Any, made: list[int]) -> None:
    records, cache = chats(ROWS), TokenCache(tmp_path / "cache")
    table = tokenize_all(records, tokenizer, cache=cache)
    shutil.rmtree(tmp_path / "cache")
    made.clear()
    assert tokenize_all(records, tokenizer, cache=cache) == table and len(made) == ROWS
    assert len(files(tmp_path / "cache")) == 4


def test_files_are_mapped_and_not_held_open(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path)
    part = TokenTable.of([TokenizedExample((5, 7), (False, True), 1)])._parts[0]
    before = len(os.listdir("/dev/fd"))
    kept = [cache.write(f"{number}", part) for number in range(50)]
    assert len(os.listdir("/dev/fd")) == before and not kept[0].input_ids.flags.owndata


def test_runs_with_other_splits_and_the_measurement_share_what_is_kept(
    tmp_path: Path, tokenizer: Any, made: list[int]
) -> None:
    records, cache = chats(ROWS), TokenCache(tmp_path)
    LengthMeter(records, tokenizer, cache=cache)
    assert len(made) == ROWS
    for seed in (1, 2):
        made.clear()
        config = TrainConfig(seed=seed, data=DataConfig(validation_share=0.2))
        kept = prepare_examples(records, tokenizer, config, cache=cache)
        assert not made
        assert kept.sha256() == prepare_examples(records, tokenizer, config).sha256()


def test_keys_are_of_the_recipe_and_the_rows() -> None:
    assert len({key_of(recipe, rows) for recipe in (b"a" * 32, b"b" * 32) for rows in (b"x", b"y")}) == 4
