"""A tokenizer's chat template, called directly.

`apply_chat_template` copies everything that it is given, at each call, which takes longer than the template. Turns of
ours are plain JSON already, so the template that transformers compiled is called with them as they are.

Some templates print the date (Llama 3.2's). A run that is resumed on another day must find the same tokens, so a caller
can name the day: `with written_on(moment): ...`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_METHODS = frozenset(dir(dict))
COMPARED = 1_000_000  # characters; what a hostile template writes is not made twice
Turns = Sequence[Mapping[str, Any]]
Template = Callable[[Turns, Any, bool], str]  # the turns, the tools or None, whether to add the generation prompt


_moments: list[datetime] = []  # of the process, not of a thread: tokens are made in several


@contextmanager
def written_on(moment: datetime) -> Iterator[None]:
    """Inside, what templates take for the current time is this moment."""
    _moments.append(moment)
    try:
        yield
    finally:
        _moments.pop()


def _now(form: str) -> str:
    return moment_of_writing().strftime(form)


def _attribute(usual: Callable[[Any, str], Any], given: Any, name: str) -> Any:
    """What jinja's sandbox finds, without the error that it raises and catches for each `message.role`."""
    return given[name] if type(given) is dict and name in given and name not in _METHODS else usual(given, name)


def moment_of_writing() -> datetime:
    """What templates take for the current time."""
    return _moments[-1] if _moments else datetime.now()


class ChatTemplate:
    """The template of one tokenizer; what it raises, transformers' and jinja's errors, is left to the caller.

    The first short conversation of each kind, with tools and without, is rendered both ways: where the two differ, as
    they may in another version of transformers, everything is rendered by `apply_chat_template`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._chosen: dict[tuple[bool, bool], Template] = {}

    def render(self, turns: Turns, tools: Any, add_generation_prompt: bool) -> str:
        """The text of a conversation."""
        kind = (tools is not None, add_generation_prompt)
        if kind in self._chosen:
            return self._chosen[kind](turns, tools, add_generation_prompt)
        direct = self._direct(tools)
        text = self._applied(turns, tools, add_generation_prompt)
        if len(text) > COMPARED:
            return text
        is_same = direct is not None and direct(turns, tools, add_generation_prompt) == text
        self._chosen[kind] = direct if direct is not None and is_same else self._applied
        return text

    def _applied(self, turns: Turns, tools: Any, add_generation_prompt: bool) -> str:
        applied: Any = self._tokenizer.apply_chat_template
        text = applied(list(turns), tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt)
        return str(text)

    def _direct(self, tools: Any) -> Template | None:
        """What `Template.render` of jinja does, without gathering the same global names at each call."""
        from jinja2.runtime import new_context

        try:
            from transformers.utils.chat_template_utils import _compile_jinja_template as compiled
        except ImportError:
            return None
        given: Any = self._tokenizer
        template: Any = compiled(given.get_chat_template(None, tools))
        template.globals["strftime_now"] = _now  # for `apply_chat_template` too, which keeps what it compiled
        if "getattr" not in vars(template.environment):
            template.environment.getattr = partial(_attribute, template.environment.getattr)
        fixed = {**template.globals, **given.special_tokens_map, "documents": None}

        def direct(turns: Turns, tools: Any, add_generation_prompt: bool) -> str:
            names = {**fixed, "messages": turns, "tools": tools, "add_generation_prompt": add_generation_prompt}
            context = new_context(template.environment, template.name, template.blocks, names, shared=True)
            return "".join(template.root_render_func(context))

        return direct
