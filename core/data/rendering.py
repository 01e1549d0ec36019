"""Conversations as the text and the prompt tokens a model sees.

With a chat template, the text is what the template renders. A model without one gets the plain format: the turns
separated by blank lines, each answer followed by the end token, no role names:

    system\\n\\nuser\\n\\nassistant<eos>\\n\\nuser\\n\\nassistant<eos>

Training and generation both go through this file, so that a model is asked as it was taught.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from core.data.records import Message
from core.errors import DatasetError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n\n"


def render(
    conversations: Sequence[Sequence[Message]], tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool
) -> list[str]:
    """The template's text of each conversation.

    Raises DatasetError when the template refuses one, as Gemma's refuses system messages.
    """
    from jinja2 import TemplateError

    if not conversations:
        return []
    plain = [[{"role": turn.role, "content": turn.content} for turn in turns] for turns in conversations]
    try:
        texts: Any = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=add_generation_prompt)
    except (TemplateError, TypeError, ValueError, IndexError, KeyError) as error:
        raise DatasetError(
            f"The model's chat template refuses the conversation: {error}.",
            "Change the turns to what the template takes (some take no system message), or choose another model.",
        ) from error
    return list(texts)


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each text, with no special tokens added: a template writes its own, and BOS must not come twice."""
    return [ids for ids, _ in _encode(texts, tokenizer, offsets=False)]


def encode_with_offsets(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], list[int]]]:
    """`encode`, with the character at which each token starts."""
    return _encode(texts, tokenizer, offsets=True)


def _encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, offsets: bool
) -> list[tuple[list[int], list[int]]]:
    if not texts:
        return []
    encoded: Any = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False,
        return_offsets_mapping=offsets, padding=False, truncation=False, verbose=False,
    )  # fmt: skip
    if not offsets:
        return [(ids, []) for ids in encoded["input_ids"]]
    starts = [[start for start, _ in spans] for spans in encoded["offset_mapping"]]
    return list(zip(encoded["input_ids"], starts, strict=True))


def encode_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that ask a model for the next answer, the same ones that stand before that answer in training."""
    if tokenizer.chat_template:
        return encode(render([messages], tokenizer, add_generation_prompt=True), tokenizer)[0]
    return [token for ids, _ in plain_parts(messages, tokenizer) for token in ids]


def plain_parts(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], bool]]:
    """The plain format as (token ids, is an answer) parts, each tokenised by itself.

    Many tokenizers join the blank line with what follows it; separate parts keep the prompt's tokens the same
    whether or not an answer follows.
    """
    parts: list[tuple[list[int], bool]] = [(beginning(tokenizer), False)]
    prompt = ""
    for turn in messages:
        if turn.role == "assistant":
            parts += [(encode([prompt], tokenizer)[0], False)]
            parts += [([*encode([turn.content], tokenizer)[0], end_id(tokenizer)], True)]
            prompt = SEPARATOR
        else:
            prompt += turn.content + SEPARATOR
    if messages and messages[-1].role != "assistant":
        parts.append((encode([prompt], tokenizer)[0], False))
    return parts


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The begin token, where the tokenizer puts one before a text by itself (Llama does, GPT-2 does not)."""
    first = tokenizer("a")["input_ids"][:1]
    return [first[0]] if first and first[0] == tokenizer.bos_token_id else []


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The end token's id. Raises ModelError where there is none, since such a model could not learn to stop."""
    if tokenizer.eos_token_id is None:
        raise ModelError("The model's tokenizer has no end token (eos_token).", "Choose another model.")
    return int(tokenizer.eos_token_id)
