"""Conversations put together from their words have the tokens and the masks of those tokenised whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from core.data import word_tokens
from core.data.chat_tokens import masked, rendered
from core.data.records import Message, Record
from core.data.rendering import encode
from core.data.turn_ends import TurnEnds
from core.data.word_tokens import WordTokens
from core.errors import DatasetError
from tests.core.data.conftest import byte_level, byte_level_by_lines, tokenizer_of
from tests.core.data.test_template_masks import CHATS, FAMILIES, IM, QWEN3, TOOL_FAMILIES, Family, record, with_tools

GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split_by(pattern: str, normalizer: Any = None, digits: bool = False) -> Tokenizer:
    backend = byte_level()
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps += [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if normalizer is not None:
        backend.normalizer = normalizer
    return backend


BACKENDS = {
    "gpt2": byte_level,
    "llama3": byte_level_by_lines,
    "qwen": lambda: split_by(QWEN, normalizers.NFC()),
    "gpt4o": lambda: split_by(GPT4O),
    "digits": lambda: split_by(QWEN, digits=True),
}
SPECIALS = ("<e>", "<end>", "<e><e>", "[/I]", "d><e")


def words_of(backend: Tokenizer, specials: Any = SPECIALS) -> tuple[WordTokens, PreTrainedTokenizerBase]:
    backend.add_special_tokens(list(specials))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    words = WordTokens.of(tokenizer)
    assert words is not None
    return words, tokenizer


@pytest.fixture(scope="session", params=BACKENDS)
def words(request: pytest.FixtureRequest) -> tuple[WordTokens, PreTrainedTokenizerBase]:
    """Learns all the time, so that what one example leaves behind meets the next one."""
    return words_of(BACKENDS[request.param]())


PIECES = st.sampled_from((*SPECIALS, " ", "  ", "\n", " \n ", "\t", "\0", "\x1c", "\x85", "\u00a0", "\u200b", "\u3000",
                          "e\u0301", "\u0301", "\u1100\u1161", "don't", "'S", "12345", "fox", " the", "你好", "🙂", "<",
                          ">", "/", ".\n", "\r\n", ".", "\n  a", "a\n", ".\n  ", "  1", "\t b"))  # fmt: skip
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=12).map("".join)


@settings(max_examples=400, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_words_make_the_tokens_of_the_text(words: tuple[WordTokens, PreTrainedTokenizerBase], texts: list[str]) -> None:
    quick, tokenizer = words
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    made = quick.masked([(text, ()) for text in texts])
    assert [one and list(one[0]) for one in made] == encode(texts, tokenizer)


def test_every_character_may_stand_beside_white_space(words: tuple[WordTokens, PreTrainedTokenizerBase]) -> None:
    quick, tokenizer = words
    codes = [*range(0x3100), *range(0xFB00, 0x10200), *range(0x1F300, 0x1F700)]  # no ideographs
    for start in range(0, len(codes), 4096):
        text = "".join(f"<e>x{chr(code)} a {chr(code)}\n b\n{chr(code)}" for code in codes[start : start + 4096])
        made = quick.masked([(text, ())])[0]
        assert made is not None and list(made[0]) == encode([text], tokenizer)[0]


def compared(records: list[Record], tokenizer: PreTrainedTokenizerBase) -> int:
    """How many conversations the words alone could do; all are compared with those tokenised whole."""
    quick, ends, done = WordTokens.of(tokenizer), TurnEnds.of(tokenizer), 0
    for one in records:
        try:
            chats = rendered([one], tokenizer, ends)
        except DatasetError:
            continue  # the template refuses it, before there are tokens
        by_words, whole = (outcome(one, chats, tokenizer, used) for used in (quick, None))
        assert by_words == whole
        done += quick is not None and all(quick.masked([(chat.text, chat.spans) for chat in chats if chat]))
    return done


def outcome(one: Record, chats: Any, tokenizer: PreTrainedTokenizerBase, words: WordTokens | None) -> Any:
    try:
        return [(list(ids), answers) for ids, answers in masked([one], chats, tokenizer, words)]
    except DatasetError as error:
        return error.what


def tokenizer_for(family: Family) -> PreTrainedTokenizerBase:
    return tokenizer_of(family.specials, family.template, family.eos, family.bos, kind=family.kind)


@pytest.mark.parametrize("name", [*FAMILIES, "qwen3"])
def test_masks_of_every_family(name: str) -> None:
    family = FAMILIES.get(name) or Family(IM, QWEN3, "<|im_end|>", None, "<|im_end|>")
    made = compared([record(turns) for turns in CHATS.values()], tokenizer_for(family))
    assert (made == 0) == (family.kind == "metaspace")  # which puts a space before a text, and has no place for cuts


@pytest.mark.parametrize("name", TOOL_FAMILIES)
def test_masks_of_tool_calls(name: str) -> None:
    assert compared([with_tools()], tokenizer_for(TOOL_FAMILIES[name][0])) == 1


SAID = st.lists(
    st.one_of(st.sampled_from((*IM, "<|eot_id|>", "<end_of_turn>", " ", "\n\n", "assistant\n", "\t", "e\u0301", "你好",
                               "Yes.", " the fox", "  ")), st.text(max_size=4)), min_size=1, max_size=6,
).map(lambda pieces: "".join(pieces).encode("utf-8", "ignore").decode() or "?")  # fmt: skip
MADE = {name: tokenizer_for(family) for name, family in FAMILIES.items()}


@settings(max_examples=150, deadline=None)
@given(turns=st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3))
def test_masks_of_any_words(turns: list[tuple[str, str]]) -> None:
    spoken = [Message(role, text) for pair in turns for role, text in zip(("user", "assistant"), pair, strict=True)]
    for tokenizer in MADE.values():
        compared([Record(7, tuple(spoken))], tokenizer)


def test_the_starter_models_words(starter_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(starter_folder)
    records = [record(turns) for turns in CHATS.values()]
    assert compared(records, tokenizer) == len(records)


@pytest.mark.parametrize("specials", [("aXa",), ("[J]", "a["), ("[J]", "<e>")])
def test_pieces_that_meet_the_special_token_between_them(specials: tuple[str, ...]) -> None:
    quick, tokenizer = words_of(byte_level(), specials)
    text = "aX aX baX a ca daX fox<e> ea"
    made = quick.masked([(text, ())])[0]
    assert made is not None and list(made[0]) == encode([text], tokenizer)[0]


def test_answers_that_end_at_no_special_token_take_whole_texts() -> None:
    quick, _ = words_of(byte_level())
    text = "the fox<e> dog<end>"
    found = quick.masked([(text, [(0, end)]) for end in range(1, len(text) + 1)])
    assert [end for end, one in enumerate(found, start=1) if one] == [len("the fox<e>"), len(text)]
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    tokenizer = tokenizer_of(["<eos>"], template + "{% if add_generation_prompt %}assistant:{% endif %}", "<eos>")
    assert 0 < compared([record(turns) for turns in CHATS.values()], tokenizer) < len(CHATS)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_tokens, "KEPT", 20)
    monkeypatch.setattr(word_tokens, "LONGEST", 5)
    quick, tokenizer = words_of(byte_level())
    texts = [f"<e>{number} a longest b{number} <end>\nf{number}" for number in range(50)]
    for _ in range(2):
        made = quick.masked([(text, ()) for text in texts])
        assert [one and list(one[0]) for one in made] == encode(texts, tokenizer)
    assert len(quick._words) <= len(quick._known) == 20
    assert max(map(len, quick._words)) <= 5


def test_words_that_do_not_come_again_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_tokens, "TRIED", 100)
    quick, _ = words_of(byte_level())
    again = [("the fox and the dog<e>" * 20, ())]
    assert all(quick.masked(again)[0] and quick.pays for _ in range(3))
    new = "".join(f" {number}" for number in range(500))
    assert quick.masked([(new, ())])[0] and not quick.pays
    assert quick.masked(again) == [None]


def _lower(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Lowercase()


def _prefix_space(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def _own_pattern(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\w+ \w+|\s+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False),
    ])  # fmt: skip


def _no_split(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _strips(backend: Tokenizer) -> None:
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])


def _holds_a_space(backend: Tokenizer) -> None:
    backend.add_tokens([AddedToken("the fox", normalized=False)])


def _both_kinds(backend: Tokenizer) -> None:
    backend.add_tokens([AddedToken("fox", normalized=True)])


def _dropout(backend: Tokenizer) -> None:
    backend.model.dropout = 0.1


def _other_model(backend: Tokenizer) -> None:
    backend.model = models.Unigram()


CHANGES = (_lower, _prefix_space, _own_pattern, _no_split, _strips, _holds_a_space, _both_kinds, _dropout, _other_model)


@pytest.mark.parametrize("change", CHANGES)
def test_other_tokenizers_take_whole_texts(change: Any) -> None:
    backend = byte_level()
    backend.add_special_tokens(["<e>"])
    assert WordTokens.of(PreTrainedTokenizerFast(tokenizer_object=backend)) is not None
    change(backend)
    assert WordTokens.of(PreTrainedTokenizerFast(tokenizer_object=backend)) is None


def test_special_tokens_that_are_split_take_whole_texts() -> None:
    backend = byte_level()
    backend.add_special_tokens(["<e>"])
    assert WordTokens.of(PreTrainedTokenizerFast(tokenizer_object=backend, split_special_tokens=True)) is None
