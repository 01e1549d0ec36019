"""Examples in arrays read like lists of examples, and threads change nothing."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from core.data import chat_template, template, token_parts
from core.data.records import Message, Record
from core.data.rendering import render
from core.data.template import tokenize_all
from core.data.tokenized import TokenizedExample, TokenPart, TokenTable, lengths_of
from core.errors import DatasetError
from core.examples import Examples

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|im_start|>", "<|im_end|>")


def chats(count: int) -> list[Record]:
    draw = random.Random(3)
    words = ("Hello there", "42", "  an indent", "你好 🙂", "line\n\nline", "the quick brown fox ")
    return [
        Record(row, tuple(
            Message(role, f"{draw.choice(words)}{draw.choice(words)}{row}")
            for _ in range(draw.randint(1, 3)) for role in ("user", "assistant")
        ))
        for row in range(1, count + 1)
    ]  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> list[TokenizedExample]:
    made = []
    for row in range(1, draw(st.integers(1, 8)) + 1):
        ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9))
        mask = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        made.append(TokenizedExample(tuple(ids), (False, *mask[1:]), row))
    return made


@settings(max_examples=200, deadline=None)
@given(made=tables(), max_length=st.integers(0, 10), data=st.data())
def test_a_table_is_like_a_list_of_its_examples(made: list[TokenizedExample], max_length: int, data: Any) -> None:
    cut_at = data.draw(st.integers(0, len(made)))
    parts = [part for part in (made[:cut_at], made[cut_at:]) if part]
    table = TokenTable([TokenTable.of(part)._parts[0] for part in parts])
    assert table == made and list(table) == made and table[-1] == made[-1] and table[:2] == made[:2]
    places = data.draw(st.lists(st.integers(0, len(made) - 1), max_size=9))
    before = tuple(range(-1, -data.draw(st.integers(1, 3)), -1))
    chosen = table.cut(max_length).pick(places).after(before)
    expected = [made[place].cut(max_length).after(before) for place in places]
    assert chosen == expected and [chosen[place] for place in range(len(chosen))] == expected
    assert chosen.lengths.tolist() == lengths_of(chosen) == lengths_of(expected)
    assert chosen.trained.tolist() == [example.n_trained for example in expected]
    assert chosen.rows.tolist() == [example.row for example in expected]
    assert Examples(chosen, table, 0, ()).sha256() == Examples(expected, tuple(made), 0, ()).sha256()


def test_places_outside_of_a_table() -> None:
    table = TokenTable.of([TokenizedExample((1, 2), (False, True), 1)])
    with pytest.raises(IndexError):
        table[1]
    with pytest.raises(ValueError, match="before virtual tokens"):
        table.after((-1,)).cut(2)
    assert table != "ab" and not TokenTable([]) and TokenTable([]).trained.tolist() == []


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("kind", ["bytes", "metaspace"])  # put together from words, and tokenised whole
def test_threads_change_nothing(make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, threads: int, kind: str) -> None:
    tokenizer, records = make_tokenizer(SPECIALS, CHATML, "<|im_end|>", kind=kind), chats(150)
    alone = [tokenize_all([record], tokenizer)[0] for record in records]
    monkeypatch.setattr(token_parts, "THREADS", threads)
    monkeypatch.setattr(token_parts, "CHUNK", 16)
    assert tokenize_all(records, tokenizer) == alone
    monkeypatch.setattr(template, "ASIDE_CHARACTERS", 10)
    assert tokenize_all(records, tokenizer) == alone


def test_the_first_row_with_an_error_is_named_whichever_is_found_first(
    make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}"  # refuses nothing; rows are refused by their tokens
    tokenizer = make_tokenizer(["<e>"], plain, "<e>")
    good = Record(1, (Message("user", "the"), Message("assistant", " quick brown fox")))
    joined = Record(2, (Message("user", "the qui"), Message("assistant", "ck brown fox")))
    unanswered = Record(3, (Message("user", "Hello"),))
    monkeypatch.setattr(token_parts, "CHUNK", 1)
    with pytest.raises(DatasetError, match=r"Row 2: .*its tokens differ"):
        tokenize_all([good, joined, unanswered, good], tokenizer)
    with pytest.raises(DatasetError, match="Row 3 has no answer"):
        tokenize_all([good, unanswered, joined, good], tokenizer)


@pytest.mark.parametrize("usual", [(700, 10, 10), (0, 10, 10), (50_000, 20, 1000)])
def test_garbage_is_collected_as_before_once_rows_are_tokenised(make_tokenizer: Any, usual: tuple[int, ...]) -> None:
    tokenizer, before, seen = make_tokenizer(SPECIALS, CHATML, "<|im_end|>"), gc.get_threshold(), []

    def leave(done: int, total: int) -> None:
        seen.append(gc.get_threshold())
        raise KeyboardInterrupt

    try:
        gc.set_threshold(*usual)
        with pytest.raises(KeyboardInterrupt):
            tokenize_all(chats(3), tokenizer, progress=leave)
        assert gc.get_threshold() == usual
    finally:
        gc.set_threshold(*before)
    assert seen[0][0] == (usual[0] and max(usual[0], 10_000)) and seen[0][2] >= 100


def test_leaving_while_rows_are_tokenised(make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer(SPECIALS, CHATML, "<|im_end|>")
    monkeypatch.setattr(token_parts, "CHUNK", 8)

    def leave(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize_all(chats(100), tokenizer, progress=leave)
    assert len(tokenize_all(chats(100), tokenizer)) == 100


def test_templates_are_rendered_as_transformers_does_it(make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer(SPECIALS, CHATML + "{{ eos_token }}", "<|im_end|>")
    turns = [record.messages for record in chats(20)]
    plain = [[{"role": turn.role, "content": turn.content} for turn in chat] for chat in turns]
    expected = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in plain]
    assert render(turns, tokenizer, False) == expected

    def other(self: Any, tools: Any) -> Any:
        return lambda turns, tools, add_generation_prompt: "something else"

    monkeypatch.setattr(chat_template.ChatTemplate, "_direct", other)
    assert render(turns, tokenizer, False) == expected


@pytest.mark.parametrize("name", ["role", "items", "_hidden", "__class__", "absent", "append", "format"])
@pytest.mark.parametrize("given", [{"role": "user", "items": 1, "_hidden": 2, "__class__": 3}, ["user"], "{0}", None])
def test_attributes_are_what_jinjas_sandbox_finds(given: Any, name: str) -> None:
    usual = ImmutableSandboxedEnvironment().getattr
    expected, found = usual(given, name), chat_template._attribute(usual, given, name)
    assert type(found) is type(expected)
    if name in ("role", "_hidden"):
        assert found == expected
    if name == "__class__":
        with pytest.raises(SecurityError):
            found()


def test_parts_can_be_joined() -> None:
    def parts() -> Iterator[TokenPart]:
        for row in (1, 5, 9):
            yield TokenTable.of([TokenizedExample((row, 7), (False, True), row)])._parts[0]

    assert TokenTable([TokenPart.joined(list(parts()))]) == TokenTable(list(parts()))
