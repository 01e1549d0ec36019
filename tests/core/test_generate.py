"""Generation against transformers' own greedy search, and that a row never depends on the rows beside it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch

from core.adapters import adapter_parameters, inject, set_adapter
from core.config import AdapterConfig, GenerationConfig
from core.data.records import Message
from core.data.rendering import encode_prompt
from core.detokenize import Detokenizer
from core.errors import ConfigError
from core.generate import end_ids, generate, stream
from core.sampling import TokenSampler, nucleus
from tests.core.toy import LENGTH, toy_gpt2, toy_llama, toy_tokenizer

QUESTIONS = ("What is it?", "Sum", "Is it the sum of two numbers or is it not, user?", "你好 🙂")
CONVERSATIONS = [[Message("user", question)] for question in QUESTIONS]
GREEDY = GenerationConfig(max_new_tokens=20, temperature=0.0)
DRAWN = GenerationConfig(max_new_tokens=20, temperature=1.0, top_p=0.8, seed=3)


def confident(make: Any, **changes: Any) -> Any:
    """Far-apart logits, so that rounding cannot turn the order of two tokens."""
    return make(**changes).double()


def oracle(model: Any, conversation: Sequence[Message], new_tokens: int = 20) -> str:
    """transformers' own greedy answer to one conversation alone."""
    tokenizer = toy_tokenizer()
    ids = torch.tensor([encode_prompt(conversation, tokenizer)])
    found = model.generate(ids, max_new_tokens=new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    said = [token for token in found[0, ids.shape[1] :].tolist() if token not in end_ids(model, tokenizer)]
    return str(tokenizer.decode(said, skip_special_tokens=True)).rstrip("\ufffd")


def adapters_on(model: Any, *names: str) -> None:
    """Adapters strong enough to change every answer."""
    for index, name in enumerate(names):
        inject(model, AdapterConfig(r=4, lora_alpha=16), name, seed=index)
        generator = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for parameter in adapter_parameters(model, name):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("make", [toy_llama, toy_gpt2])
def test_greedy_equals_transformers(make: Any) -> None:
    model = confident(make)
    answers = generate(model, toy_tokenizer(), CONVERSATIONS, config=GREEDY)
    assert answers == [oracle(model, conversation) for conversation in CONVERSATIONS]
    assert len(set(answers)) > 1


@pytest.mark.parametrize("config", [GREEDY, DRAWN])
def test_rows_with_their_own_adapters_equal_single_runs(config: GenerationConfig) -> None:
    model, tokenizer = confident(toy_llama), toy_tokenizer()
    adapters_on(model, "one", "two")
    names = ["one", None, "two", "one"]
    together = generate(model, tokenizer, CONVERSATIONS, names, config)
    for answer, conversation, name in zip(together, CONVERSATIONS, names, strict=True):
        set_adapter(model, name)
        assert [answer] == generate(model, tokenizer, [conversation], config=config)
    same = generate(model, tokenizer, [CONVERSATIONS[0]] * 3, ["one", None, "two"], config)
    assert len(set(same)) == 3


def test_active_adapters_serve_when_none_are_named() -> None:
    model, tokenizer = confident(toy_llama), toy_tokenizer()
    adapters_on(model, "one")
    assert generate(model, tokenizer, CONVERSATIONS, config=GREEDY) == generate(
        model, tokenizer, CONVERSATIONS, ["one"] * 4, GREEDY
    )
    base = generate(model, tokenizer, CONVERSATIONS, [None] * 4, GREEDY)
    set_adapter(model, None)
    assert base == generate(model, tokenizer, CONVERSATIONS, config=GREEDY)


def test_a_row_ends_at_any_end_token_and_the_others_go_on() -> None:
    model, tokenizer = confident(toy_llama), toy_tokenizer()
    ids = [encode_prompt(conversation, tokenizer) for conversation in CONVERSATIONS]
    whole = [model.generate(torch.tensor([row]), max_new_tokens=20, do_sample=False)[0, len(row) :].tolist()
             for row in ids]  # fmt: skip
    stopper = whole[0][4]
    model.generation_config.eos_token_id = [stopper, tokenizer.eos_token_id]
    assert end_ids(model, tokenizer) == {stopper, tokenizer.eos_token_id}
    answers = generate(model, tokenizer, CONVERSATIONS, config=GREEDY)
    assert answers == [oracle(model, conversation) for conversation in CONVERSATIONS]
    assert answers[0] == tokenizer.decode(whole[0][: whole[0].index(stopper)]).rstrip("\ufffd")


def test_texts_only_grow_and_are_whole_characters() -> None:
    model, tokenizer = confident(toy_llama), toy_tokenizer()
    seen = list(stream(model, tokenizer, CONVERSATIONS, config=DRAWN))
    assert 1 <= len(seen) <= DRAWN.max_new_tokens
    for before, after in pairwise(seen):
        assert all(new.startswith(old) for old, new in zip(before, after, strict=True))
    assert not any(text.endswith("\ufffd") for texts in seen for text in texts)


def test_stop_callback_ends_at_once() -> None:
    model, tokenizer = toy_llama(), toy_tokenizer()
    count = 0

    def stop() -> bool:
        return count >= 3

    for _ in stream(model, tokenizer, CONVERSATIONS, config=GREEDY, stop=stop):
        count += 1
    assert count == 3
    assert list(stream(model, tokenizer, CONVERSATIONS, config=GREEDY, stop=lambda: True)) == []


def test_closing_the_stream_leaves_the_model_as_it_was() -> None:
    model, tokenizer = toy_llama(), toy_tokenizer()
    adapters_on(model, "one")
    model.train()
    answers = stream(model, tokenizer, CONVERSATIONS, ["one", None, "one", None], GREEDY)
    next(answers)
    assert torch.is_grad_enabled() and all(module.training for module in model.modules())
    answers.close()
    output = model(input_ids=torch.tensor([[1, 2, 3]]))  # a batch of another size than the rows had
    assert output.logits.requires_grad


def test_the_context_bounds_prompt_and_answer() -> None:
    model, tokenizer = toy_llama(), toy_tokenizer()
    long = [Message("user", "x" * 500)]
    with pytest.raises(ConfigError, match="Conversation 2 has"):
        generate(model, tokenizer, [CONVERSATIONS[0], long], config=GREEDY)
    model.generation_config.eos_token_id = None
    prompt = len(encode_prompt(CONVERSATIONS[0], tokenizer))
    config = GenerationConfig(max_new_tokens=10 * LENGTH, temperature=0.0)
    assert len(list(stream(model, tokenizer, CONVERSATIONS[:1], config=config))) <= LENGTH - prompt
    with pytest.raises(ConfigError, match="Give one to each"):
        generate(model, tokenizer, CONVERSATIONS, ["one"], GREEDY)
    assert generate(model, tokenizer, [], config=GREEDY) == []


def test_a_model_without_a_cache_gives_the_same_answers() -> None:
    model, tokenizer = confident(toy_llama), toy_tokenizer()
    wanted = generate(model, tokenizer, CONVERSATIONS, config=GREEDY)
    forward = model.forward

    def without(input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **options: Any) -> Any:
        options["use_cache"] = False
        return forward(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **options)

    model.forward = without
    assert generate(model, tokenizer, CONVERSATIONS, config=GREEDY) == wanted


def test_nucleus() -> None:
    logits = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25]))
    for top_p, kept in [(0.4, [1]), (0.5, [1]), (0.6, [1, 3]), (0.76, [1, 3, 2]), (1.0, [1, 3, 2, 0])]:
        shares, tokens = nucleus(logits, 1.0, top_p - 1e-9)
        assert tokens.tolist() == kept
        torch.testing.assert_close(shares, logits.double().exp()[tokens])


def test_draws_follow_the_probabilities() -> None:
    """Chi-squared of 4,000 draws at 3 degrees of freedom: 16.3 is exceeded once in a thousand."""
    wanted = torch.tensor([0.1, 0.5, 0.15, 0.25])
    sampler = TokenSampler(GenerationConfig(temperature=1.0, top_p=1.0, seed=1))
    counts = torch.bincount(torch.tensor([sampler.choose(wanted.log()) for _ in range(4000)]), minlength=4)
    assert float(((counts - 4000 * wanted) ** 2 / (4000 * wanted)).sum()) < 16.3


def test_temperature_sharpens() -> None:
    logits = torch.tensor([1.0, 2.0])
    shares, tokens = nucleus(logits, 0.5, 1.0)
    assert tokens.tolist() == [1, 0]
    torch.testing.assert_close(shares, torch.softmax(torch.tensor([4.0, 2.0]).double(), 0))


@pytest.mark.parametrize("text", ["plain words, and more", "naïve 你好 🙂🙃 café", "a\n\n  b\tc", "👩‍👩‍👧‍👦 x"])
def test_detokenizer_says_what_the_tokenizer_says(text: str) -> None:
    tokenizer = toy_tokenizer()
    words, shown = Detokenizer(tokenizer), [""]
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        words.add(token)
        assert words.text.startswith(shown[-1]) and "\ufffd" not in words.text
        shown.append(words.text)
    assert words.text == text and len(set(shown)) > 2


def test_detokenizer_hides_half_a_character() -> None:
    tokenizer = toy_tokenizer()
    tokens = tokenizer("a🙂", add_special_tokens=False)["input_ids"]
    words = Detokenizer(tokenizer)
    for token in tokens[:-1]:
        words.add(token)
    assert words.text == "a"
