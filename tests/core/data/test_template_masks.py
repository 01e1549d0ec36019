"""Trained tokens are exactly the assistant's words and the end token, whatever the template."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from core.data.prompt_tokens import prompt_tokens
from core.data.records import Message, Record, ToolCall
from core.data.rendering import encode, encode_prompt, encode_with_places, render
from core.data.template import tokenize, tokenize_all
from core.data.tokenized import TokenizedExample
from core.data.turn_ends import TurnEnds
from core.errors import DatasetError, ModelError
from tests.core.data.conftest import tokenizer_of


@dataclass(frozen=True)
class Family:
    """A family's turn format, and the text that ends an answer."""

    specials: tuple[str, ...]
    template: str
    eos: str
    bos: str | None
    end: str
    system: bool = True
    trims: bool = False
    lead: str = ""  # what the template puts before the answer's words, which the model has to write
    kind: str = "bytes"


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN25 = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helper.<|im_end|>\n{% endif %}" + CHATML
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
EACH = "{% for m in messages %}"
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
FAMILIES = {
    "chatml": Family(IM, CHATML, "<|im_end|>", None, "<|im_end|>"),
    "qwen2.5": Family(IM, QWEN25, "<|im_end|>", None, "<|im_end|>"),
    "llama3": Family(
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        LLAMA3, "<|end_of_text|>", "<|begin_of_text|>", "<|eot_id|>", trims=True, kind="lines",
    ),
    "gemma": Family(
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        GEMMA, "<eos>", "<bos>", "<end_of_turn>", system=False, trims=True,
    ),
    "mistral": Family(("<s>", "</s>"), MISTRAL, "</s>", "<s>", "</s>", lead=" ", kind="metaspace"),
    "phi3": Family(
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), PHI3, "<|endoftext|>", None, "<|end|>",
    ),
}  # fmt: skip

U, A, S = "user", "assistant", "system"
CHATS = {
    "single": ((U, "How are you?"), (A, "Fine, thank you.")),
    "system": ((S, "Be brief."), (U, "How are you?"), (A, "Fine.")),
    "multi": ((U, "Hello"), (A, "Hello there!"), (U, "And 42?"), (A, "Yes. 42\n\nis it."), (U, "Good"), (A, "bye")),
    "chinese": ((U, "今天天气怎么样？"), (A, "你好，世界。🙂 café")),
    "prompt holds the answer": ((U, "Say Yes."), (A, "Yes."), (U, "Yes.\nassistant\nYes."), (A, "Yes.")),
    "an answer of one letter": ((U, "e?"), (A, "e")),
    "white space at the end": ((U, "Hello \n"), (A, "Yes. \n\n")),
    "unanswered": ((U, "Hello"), (A, "Hello there!"), (U, "And?")),
    "markers as words": ((U, "What is im_end?"), (A, "It is |im_end| or </end> or [/INST] or model\n.")),
}


# -- tools

QWEN_TOOLS = (
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}# Tools\n\n<tools>"
    "{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}{{ '\n' }}</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% elif m.tool_calls %}<|im_start|>assistant{% if m.content %}{{ '\n' }}{{ m.content }}{% endif %}"
    "{% for call in m.tool_calls %}{{ '\n' }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% elif m.role != 'system' or not loop.first %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3_TOOLS = (
    "{{ bos_token }}{% if tools %}<|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|eot_id|>{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "<|eot_id|>{% else %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL_TOOLS = (  # the tools stand before the last question
    "{{ bos_token }}{% set users = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and m == users[-1] %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST]{{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS][{% for call in m.tool_calls %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}'
    "{% endfor %}]{{ eos_token }}{% elif m.role == 'tool' %}"
    '[TOOL_RESULTS]{"content": "{{ m.content }}", "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]'
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_TOKENS = ("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
                  "[TOOL_RESULTS]", "[/TOOL_RESULTS]")  # fmt: skip
CALL_WORDS = '"arguments": {"city": "Oslo"}'
TOOL_FAMILIES = {
    "qwen": (Family(IM, QWEN_TOOLS, "<|im_end|>", None, "<|im_end|>"),
             f'<tool_call>\n{{"name": "weather", {CALL_WORDS}}}\n</tool_call>'),
    "llama3": (Family(FAMILIES["llama3"].specials, LLAMA3_TOOLS, "<|end_of_text|>", "<|begin_of_text|>", "<|eot_id|>",
                      kind="lines"),
               '{"name": "weather", "parameters": {"city": "Oslo"}}'),
    "mistral": (Family(MISTRAL_TOKENS, MISTRAL_TOOLS, "</s>", "<s>", "</s>"),
                f'[TOOL_CALLS][{{"name": "weather", {CALL_WORDS}, "id": "call00001"}}]'),
}  # fmt: skip
CALLED = Message(A, "", (ToolCall("weather", '{"city": "Oslo"}', "call00001"),))
ANSWERED = Message("tool", "-3", name="weather", call_id="call00001")
TOOLS = json.dumps([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}])


def with_tools(*before: tuple[str, str]) -> Record:
    turns = [*before, (U, "Is it cold in Oslo?")]
    spoken = tuple(Message(role, content) for role, content in turns)
    return Record(7, (*spoken, CALLED, ANSWERED, Message(A, "Yes.")), tools=TOOLS)


@pytest.fixture(scope="session", params=TOOL_FAMILIES)
def tool_family(request: pytest.FixtureRequest, make_tokenizer: Any) -> tuple[str, str, str, PreTrainedTokenizerBase]:
    chosen, called = TOOL_FAMILIES[request.param]
    made = make_tokenizer(chosen.specials, chosen.template, chosen.eos, chosen.bos, kind=chosen.kind)
    return request.param, called, chosen.end, made


def test_tool_calls_are_trained_and_the_tools_answers_are_not(tool_family: Any) -> None:
    _, called, end, tokenizer = tool_family
    example = tokenize(with_tools(), tokenizer)
    assert trained(example, tokenizer) == [called + end, "Yes." + end]
    whole = tokenizer.decode(example.input_ids)
    assert "weather" in whole.split(called)[0] and "-3" in whole
    prompt = encode_prompt(with_tools().messages[:1], tokenizer, TOOLS)
    assert list(example.input_ids[: len(prompt)]) == prompt and example.loss_mask[len(prompt)]
    for length in range(len(prompt) + 1, len(example.input_ids)):
        assert tokenize(with_tools(), tokenizer, length).loss_mask == example.loss_mask[:length]


def test_tools_in_later_turns(tool_family: Any) -> None:
    name, called, end, tokenizer = tool_family
    chat = with_tools((U, "Hello"), (A, "Hello there!"))
    if name == "mistral":  # the first answer would be trained with the tools in a place where they never are in use
        with pytest.raises(DatasetError, match=r"Row 7: .*not clear where an answer begins"):
            tokenize(chat, tokenizer)
        return
    assert trained(tokenize(chat, tokenizer), tokenizer) == ["Hello there!" + end, called + end, "Yes." + end]


def test_words_beside_a_tool_call_are_trained_too(make_tokenizer: Any) -> None:
    qwen, called = TOOL_FAMILIES["qwen"]
    tokenizer = make_tokenizer(qwen.specials, qwen.template, qwen.eos)
    speaking = Message(A, "Let me see.", CALLED.tool_calls)
    chat = Record(7, (Message(S, "Be brief."), Message(U, "Cold?"), speaking, ANSWERED, ANSWERED, Message(A, "Yes.")))
    assert trained(tokenize(chat, tokenizer), tokenizer) == [f"Let me see.\n{called}<|im_end|>", "Yes.<|im_end|>"]


def test_templates_that_would_lose_the_tools_are_refused(family: tuple[Family, PreTrainedTokenizerBase]) -> None:
    _, tokenizer = family
    called_only = Record(7, with_tools().messages)
    offered_only = Record(7, record(CHATS["single"]).messages, tools=TOOLS)
    for chat in (with_tools(), called_only, offered_only):
        with pytest.raises(DatasetError, match="Row 7: The model's chat template") as caught:
            tokenize(chat, tokenizer)
        assert "tools" in caught.value.fix or "template takes" in caught.value.fix


def test_without_a_template_there_are_no_tools(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(["<eos>"], None, "<eos>")
    with pytest.raises(DatasetError, match="Row 7: The model has no chat template, so nothing says"):
        tokenize(with_tools(), tokenizer)


def record(turns: tuple[tuple[str, str], ...]) -> Record:
    return Record(7, tuple(Message(role, content) for role, content in turns))


def trained(example: TokenizedExample, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each unbroken run of trained tokens."""
    pairs = zip(example.input_ids, example.loss_mask, strict=True)
    runs = [[token for token, _ in run] for is_trained, run in groupby(pairs, key=lambda pair: pair[1]) if is_trained]
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, make_tokenizer: Any) -> tuple[Family, PreTrainedTokenizerBase]:
    chosen = FAMILIES[request.param]
    made = make_tokenizer(
        chosen.specials, chosen.template, chosen.eos, chosen.bos, kind=chosen.kind, adds_bos=bool(chosen.bos)
    )
    return chosen, made


@pytest.mark.parametrize("name", CHATS)
def test_trained_tokens_are_the_answers_and_their_ends(
    family: tuple[Family, PreTrainedTokenizerBase], name: str
) -> None:
    chosen, tokenizer = family
    turns = CHATS[name]
    if turns[0][0] == S and not chosen.system:
        with pytest.raises(DatasetError, match=r"Row 7: .*System role not supported"):
            tokenize(record(turns), tokenizer)
        return
    example = tokenize(record(turns), tokenizer)
    words = [content.strip() if chosen.trims else content for role, content in turns if role == A]
    assert trained(example, tokenizer) == [chosen.lead + answer + chosen.end for answer in words]
    assert example.n_trained == sum(example.loss_mask)
    if chosen.bos:
        assert example.input_ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", ["single", "multi"])
def test_generation_is_asked_with_the_tokens_of_training(
    family: tuple[Family, PreTrainedTokenizerBase], name: str
) -> None:
    _, tokenizer = family
    chat = record(CHATS[name])
    example = tokenize(chat, tokenizer)
    prompt = encode_prompt(chat.messages[:-1], tokenizer)
    assert list(example.input_ids[: len(prompt)]) == prompt
    assert example.loss_mask[len(prompt)] and not example.loss_mask[len(prompt) - 1]


def test_prompts_are_checked_as_if_tokenised_whole(family: tuple[Family, PreTrainedTokenizerBase]) -> None:
    chosen, tokenizer = family
    turns = [turn for turn in record(CHATS["multi"]).messages if chosen.system or turn.role != S]
    text = render([turns], tokenizer, False)[0]
    whole = encode_with_places([text], tokenizer)
    places = range(1, len(text))
    prefixes = encode([text[:place] for place in places], tokenizer)
    expected = [len(prefix) if whole[0].ids[: len(prefix)] == prefix else None for prefix in prefixes]
    assert None in expected and any(expected)
    assert list(prompt_tokens([text], whole, [places], tokenizer)) == [expected]


def test_qwen3_drops_the_thinking_of_earlier_turns(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(IM, QWEN3, "<|im_end|>")
    example = tokenize(record(CHATS["multi"]), tokenizer)
    assert trained(example, tokenizer) == [
        "Hello there!<|im_end|>",
        "Yes. 42\n\nis it.<|im_end|>",
        "<think>\n\n</think>\n\nbye<|im_end|>",
    ]


def test_a_blank_line_that_joins_with_the_answer_keeps_the_prompts_tokens(make_tokenizer: Any) -> None:
    llama = FAMILIES["llama3"]  # with GPT-2's kind of tokenizer, whose blank line alone is another token
    tokenizer = make_tokenizer(llama.specials, llama.template, llama.eos, llama.bos)
    assert tokenizer("\n\n")["input_ids"] != tokenizer("\n\nFine")["input_ids"][:1]
    chat = record(CHATS["multi"])
    example = tokenize(chat, tokenizer)
    assert trained(example, tokenizer) == [
        turn.content + "<|eot_id|>" for turn in chat.messages if turn.role == "assistant"
    ]
    prompt = encode_prompt(chat.messages[:1], tokenizer)
    assert list(example.input_ids[: len(prompt)]) == prompt


@pytest.mark.parametrize("answer", ["  Hello there!", "\n\nYes.", "    return 42\n"])
def test_an_answer_that_begins_with_white_space_keeps_the_prompts_tokens(make_tokenizer: Any, answer: str) -> None:
    tokenizer = make_tokenizer(IM, CHATML, "<|im_end|>")
    chat = record(((U, "Hello"), (A, answer), (U, "And?"), (A, answer)))
    example = tokenize(chat, tokenizer)
    assert trained(example, tokenizer) == [answer + "<|im_end|>"] * 2
    prompt = encode_prompt(chat.messages[:1], tokenizer)
    assert list(example.input_ids[: len(prompt)]) == prompt


def test_a_template_without_an_end_token_gets_one(make_tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = make_tokenizer(["<eos>"], template, "<eos>")
    example = tokenize(record(CHATS["single"]), tokenizer)
    assert trained(example, tokenizer) == [" Fine, thank you.<eos>"]
    assert example.input_ids[-1] == tokenizer.eos_token_id and example.loss_mask[-1]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (EACH + "{{ m['content'] }}<e>{% endfor %}{% if add_generation_prompt %}?{% endif %}", "the prompt"),
        ("{{ messages | length }}" + EACH + "{{ m['content'] }}<e>{% endfor %}", "the prompt"),
        (EACH + "{{ m['content'] if loop.last else m['content'] | upper }}<e>{% endfor %}", "the prompt"),
        (EACH + "{{ m['content'] | upper if not loop.last and loop.index % 2 == 0 else m['content'] }}<e>{% endfor %}",
         "an earlier turn is rendered differently"),
    ],
)  # fmt: skip
def test_unclear_boundaries_are_refused(make_tokenizer: Any, template: str, why: str) -> None:
    tokenizer = make_tokenizer(["<e>"], template, "<e>")
    with pytest.raises(DatasetError, match=rf"Row 7: .*{why}") as caught:
        tokenize(record(CHATS["multi"]), tokenizer)
    assert caught.value.fix


def test_tokens_that_join_prompt_and_answer_are_refused(make_tokenizer: Any) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer = make_tokenizer(["<e>"], template, "<e>")
    with pytest.raises(DatasetError, match="its tokens differ"):
        tokenize(record(((U, "the qui"), (A, "ck brown fox"))), tokenizer)


def test_plain_format_without_a_template(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(["<bos>", "<eos>"], None, "<eos>", "<bos>", adds_bos=True)
    chat = record(CHATS["multi"])
    example = tokenize(chat, tokenizer)
    assert tokenizer.decode(example.input_ids) == (
        "<bos>Hello\n\nHello there!<eos>\n\nAnd 42?\n\nYes. 42\n\nis it.<eos>\n\nGood\n\nbye<eos>"
    )
    assert trained(example, tokenizer) == ["Hello there!<eos>", "Yes. 42\n\nis it.<eos>", "bye<eos>"]
    prompt = encode_prompt(chat.messages[:-1], tokenizer)
    assert list(example.input_ids[: len(prompt)]) == prompt


@pytest.mark.parametrize("adds_bos", [True, False])
def test_plain_text_trains_every_token_and_the_end(make_tokenizer: Any, adds_bos: bool) -> None:
    tokenizer = make_tokenizer(["<bos>", "<eos>"], CHATML, "<eos>", "<bos>", adds_bos=adds_bos)
    example = tokenize(Record(1, text="The quick brown fox."), tokenizer)
    start = "<bos>" if adds_bos else ""
    assert tokenizer.decode(example.input_ids) == f"{start}The quick brown fox.<eos>"
    assert example.loss_mask == (False, *[True] * (len(example.input_ids) - 1))


def test_training_on_prompts_too(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(IM, CHATML, "<|im_end|>")
    example = tokenize(record(CHATS["single"]), tokenizer, completion_only=False)
    assert not example.loss_mask[0] and all(example.loss_mask[1:])


def test_truncation_cuts_the_right_end(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(IM, CHATML, "<|im_end|>")
    whole = tokenize(record(CHATS["multi"]), tokenizer)
    first = whole.loss_mask.index(True)
    for length in range(first + 1, len(whole.input_ids) + 2):
        cut = tokenize(record(CHATS["multi"]), tokenizer, max_length=length)
        assert cut.input_ids == whole.input_ids[:length] and cut.loss_mask == whole.loss_mask[:length]
    with pytest.raises(DatasetError, match=rf"Row 7: nothing is left .* {first} tokens.* begins at token {first + 1}"):
        tokenize(record(CHATS["multi"]), tokenizer, max_length=first)


def test_truncation_trains_a_beginning_of_what_is_trained_uncut(family: tuple[Family, PreTrainedTokenizerBase]) -> None:
    _, tokenizer = family
    whole = tokenize(record(CHATS["multi"]), tokenizer)
    for length in range(whole.loss_mask.index(True) + 1, len(whole.input_ids)):
        cut = tokenize(record(CHATS["multi"]), tokenizer, max_length=length)
        assert (cut.input_ids, cut.loss_mask) == (whole.input_ids[:length], whole.loss_mask[:length])


def test_all_at_once_equals_one_by_one_and_reports_progress(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(IM, CHATML, "<|im_end|>")
    kinds = [record(turns) for turns in CHATS.values()] + [Record(9, text="The lazy dog.")]
    records = [kinds[index % len(kinds)] for index in range(600)]
    seen: list[tuple[int, int]] = []
    examples = tokenize_all(records, tokenizer, progress=lambda done, total: seen.append((done, total)))
    alone = [tokenize(kind, tokenizer) for kind in kinds]
    assert examples == [alone[index % len(kinds)] for index in range(600)]
    assert seen[-1] == (600, 600) and seen == sorted(seen) and len(seen) > 1


def test_padding_left_on_by_someone_else_does_no_harm(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(IM, CHATML, "<|im_end|>")
    tokenizer.pad_token = "<|im_end|>"
    before = [tokenize(record(turns), tokenizer) for turns in CHATS.values()]
    tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=4)
    assert tokenize_all([record(turns) for turns in CHATS.values()], tokenizer) == before


def test_the_row_that_a_template_refuses_is_named(make_tokenizer: Any) -> None:
    gemma = FAMILIES["gemma"]
    tokenizer = make_tokenizer(gemma.specials, gemma.template, gemma.eos, gemma.bos)
    good = Record(1, record(CHATS["single"]).messages)
    bad = Record(33, record(CHATS["system"]).messages)
    with pytest.raises(DatasetError, match="Row 33: The model's chat template refuses"):
        tokenize_all([good] * 5 + [bad], tokenizer)


def test_slow_tokenizers_and_missing_end_tokens_are_refused(make_tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="slow tokenizer"):
        tokenize_all([record(CHATS["single"])], SimpleNamespace(is_fast=False))  # type: ignore[arg-type]
    tokenizer = make_tokenizer(["<x>"], None, None)
    with pytest.raises(ModelError, match="no end token"):
        tokenize(Record(1, text="Hello"), tokenizer)


def test_no_answer_is_refused(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(IM, CHATML, "<|im_end|>")
    with pytest.raises(DatasetError, match="Row 7 has no answer"):
        tokenize(record(((U, "Hello"),)), tokenizer)


@pytest.mark.parametrize("name", CHATS)
def test_the_starter_model(starter_folder: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(starter_folder)
    example = tokenize(record(CHATS[name]), tokenizer)
    assert trained(example, tokenizer) == [content + "<|im_end|>" for role, content in CHATS[name] if role == A]
    last = max(at for at, is_trained in enumerate(example.loss_mask) if is_trained)
    assert example.input_ids[last] == tokenizer.eos_token_id
    assert tokenizer.decode(example.input_ids[last + 1 :]) == "\n"


ENDS = ("<e>", "<end>", "[/I]", "e>", "<", "> ", "><")


@settings(max_examples=300, deadline=None)
@given(
    specials=st.lists(st.sampled_from(ENDS), min_size=1, max_size=3, unique=True),
    pieces=st.lists(st.one_of(st.sampled_from((*ENDS, " ", "\n", "a", "<en", "d>")), st.text(max_size=2)), max_size=6),
)
def test_a_text_is_closed_where_no_special_token_ends_it(specials: list[str], pieces: list[str]) -> None:
    ends, text = TurnEnds.of(tokenizer_of(specials, None, specials[0])), "".join(pieces)
    assert bool(ends.names) or not set(specials) <= {"<e>", "<end>", "[/I]"}
    assert ends.closed(text) == replace(ends, names=()).closed(text)


def test_the_table_of_masks_is_what_tokenising_gives() -> None:
    from tests.core.data.mask_table import TABLE, table

    assert TABLE.read_text(encoding="utf-8") == table()
