"""Conversations as the text and the prompt tokens a model sees.

With a chat template, the text is what the template renders. A model without one gets the plain format: the turns
separated by blank lines, each answer followed by the end token, no role names:

    system\\n\\nuser\\n\\nassistant<eos>\\n\\nuser\\n\\nassistant<eos>

Training and generation both go through this file, so that a model is asked as it was taught.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from core.data.chat_template import ChatTemplate
from core.data.encoded import Encoded
from core.data.records import Message, ToolCall
from core.errors import DatasetError, ModelError
from core.limits import CPU_S, MEMORY_BYTES, LimitError, Limits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n\n"
MAX_RENDERED = 32_000_000  # characters of one conversation; a row of a dataset has at most a third of that


def render(
    conversations: Sequence[Sequence[Message]],
    tokenizer: PreTrainedTokenizerBase,
    add_generation_prompt: bool,
    tools: Sequence[str] = (),
) -> list[str]:
    """The template's text of each conversation; `tools` are those of each, as `Record` holds them.

    The template comes with the model, so it runs within limits. Raises DatasetError when it refuses a conversation, as
    Gemma's refuses system messages, or writes no tools, and ModelError when it takes too long or too much memory.
    """
    texts: list[str] = []
    template = ChatTemplate(tokenizer)
    shared = {id(turn): turn for turns in conversations for turn in turns}  # one conversation begins like another
    plain = {key: _as_dict(turn) for key, turn in shared.items()}
    with Limits() as limits:
        for turns, given in zip(conversations, tools or [""] * len(conversations), strict=True):
            limits.renew_now_and_then()
            parsed = json.loads(given) if given else None
            texts.append(_apply(template, [plain[id(turn)] for turn in turns], add_generation_prompt, parsed))
            _check_tools(turns, given, texts[-1])
    return texts


def _apply(template: ChatTemplate, turns: Sequence[dict[str, Any]], add_generation_prompt: bool, tools: Any) -> str:
    from jinja2 import TemplateError

    try:
        text = template.render(turns, tools, add_generation_prompt)
    except (LimitError, MemoryError, RecursionError):
        raise _too_much(f"takes over {CPU_S:.0f} s or {MEMORY_BYTES >> 30} GiB") from None
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise DatasetError(
            f"The model's chat template refuses the conversation: {error}.",
            "Change the turns to what the template takes (some take no system message), or choose another model.",
        ) from error
    if len(text) > MAX_RENDERED:
        raise _too_much(f"makes {len(text):,} characters")
    return text


def _too_much(what: str) -> ModelError:
    return ModelError(
        f"The model's chat template {what} for one conversation, so it was stopped.",
        "Choose another model, or put a sound chat_template.jinja into its folder.",
    )


def _as_dict(turn: Message) -> dict[str, Any]:
    """A turn as chat templates read it; only what it has, as templates ask whether a key is there."""
    plain: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        plain["tool_calls"] = [_call(call) for call in turn.tool_calls]
    if turn.name:
        plain["name"] = turn.name
    if turn.call_id:
        plain["tool_call_id"] = turn.call_id
    return plain


def _call(call: ToolCall) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "type": "function",
        "function": {"name": call.name, "arguments": json.loads(call.arguments)},
    }
    return {**plain, "id": call.id} if call.id else plain


def _check_tools(turns: Sequence[Message], tools: str, text: str) -> None:
    """Many templates know no tools and pass over them in silence."""
    names = [call.name for turn in turns if turn.tool_calls for call in turn.tool_calls]
    names += [tool["function"]["name"] for tool in json.loads(tools)] if tools else []
    lost = next((name for name in names if name not in text), None)
    if lost is not None:
        raise DatasetError(
            f"The model's chat template does not write the tool {lost[:40]!r}.",
            "Choose a model that was made for tools, or remove the tools from the dataset.",
        )


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each text, with no special tokens added: a template writes its own, and BOS must not come twice."""
    return [encoded.ids for encoded in encode_with_places(texts, tokenizer)]


def encode_with_places(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """`encode`, with the characters that the tokens stand for."""
    if not texts:
        return []
    made: Any = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False,
        padding=False, truncation=False, verbose=False,
    )  # fmt: skip
    return [Encoded(encoding) for encoding in made.encodings]


def encode_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: str = "") -> list[int]:
    """The tokens that ask a model for the next answer, the same ones that stand before that answer in training."""
    if tokenizer.chat_template:
        return encode(render([messages], tokenizer, True, [tools]), tokenizer)[0]
    return [token for ids, _ in plain_parts(messages, tokenizer) for token in ids]


def plain_parts(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], bool]]:
    """The plain format as (token ids, is an answer) parts, each tokenised by itself.

    Many tokenizers join the blank line with what follows it; separate parts keep the prompt's tokens the same
    whether or not an answer follows.
    """
    if any(turn.tool_calls or turn.role == "tool" for turn in messages):
        raise DatasetError(
            "The model has no chat template, so nothing says how it should write tool calls.",
            "Choose a model that was made for tools, or remove the tools from the dataset.",
        )
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


def encode_source(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the encoder of a seq2seq model reads: the turns, a blank line between two, in the tokenizer's own frame."""
    return encode_sources([messages], tokenizer)[0]


def encode_sources(conversations: Sequence[Sequence[Message]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """`encode_source` of each conversation, by one call of the tokenizer."""
    texts = [SEPARATOR.join(turn.content for turn in messages) for messages in conversations]
    ids: list[list[int]] = tokenizer(texts, verbose=False)["input_ids"]
    return ids


def encode_targets(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """What the decoder of a seq2seq model writes; it ends with the end token, whatever the tokenizer's frame is."""
    made: list[list[int]] = tokenizer(text_target=list(texts), verbose=False)["input_ids"]
    end = end_id(tokenizer)
    return [ids if ids and ids[-1] == end else [*ids, end] for ids in made]
