"""Fragments: what comes from files, users and models is shown literally, and every state has a word."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from studio.views import ChatPane
from ui import fragments
from ui.fragments import Cell, Row
from ui.i18n import Translator
from ui.panes import Conversation, answered, example_chips, first_question, pane_html, with_prompt

HOSTILE = (
    "<img src=x onerror=alert(1)>\"' onmouseover=alert(2) {{x}} ${1+1} </div><script>alert(3)</script> \u202egnp.exe"
)


class Collected(HTMLParser):
    """The tags and attributes that a browser would see, and the text."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    "make",
    [
        lambda t: fragments.bubbles([("user", HOSTILE), (HOSTILE, "x")], t),
        lambda t: fragments.table(["a"], [Row((HOSTILE,), HOSTILE, True)], HOSTILE),
        lambda t: fragments.table(["a"], [Row((Cell.number(HOSTILE),)), Row((Cell.words(HOSTILE),))], "x"),
        lambda t: fragments.callout("error", HOSTILE, HOSTILE, t),
        lambda t: fragments.progress(0.5, HOSTILE, HOSTILE),
        lambda t: fragments.readings({HOSTILE: HOSTILE}),
        lambda t: fragments.heading(HOSTILE, HOSTILE) + fragments.empty(HOSTILE, HOSTILE),
        lambda t: fragments.button(HOSTILE, HOSTILE, HOSTILE),
        lambda t: fragments.download(HOSTILE, HOSTILE, HOSTILE),
        lambda t: fragments.folded(HOSTILE, ""),
        lambda t: fragments.badge_level("error", HOSTILE, t),
        lambda t: example_chips([(HOSTILE, HOSTILE)], t),
        lambda t: pane_html(ChatPane("a", HOSTILE), [["user", HOSTILE]], HOSTILE, HOSTILE, t),
    ],
)  # fmt: skip
def test_hostile_text_makes_no_element_and_no_handler(make: object, t: Translator) -> None:
    seen = Collected(make(t))  # type: ignore[operator]
    assert not seen.tags & {"img", "script"}
    assert not any(name.startswith("on") for name in seen.attributes)


def test_hostile_text_is_still_readable(t: Translator) -> None:
    assert HOSTILE in Collected(fragments.bubbles([("user", HOSTILE)], t)).text


@pytest.mark.parametrize("state", ["queued", "running", "paused", "succeeded", "failed", "cancelled"])
def test_every_state_has_a_symbol_and_a_word(state: str, t: Translator) -> None:
    text = Collected(fragments.badge(state, t)).text
    assert t(f"state.{state}") in text
    assert fragments.STATE_SYMBOLS[state] in text
    assert len(set(fragments.STATE_SYMBOLS.values())) == len(fragments.STATE_SYMBOLS)


def test_progress_is_clamped_and_tells_its_figure() -> None:
    assert 'aria-valuenow="100"' in fragments.progress(1.7, "x")
    assert 'aria-valuenow="0"' in fragments.progress(-1, "x")


def test_a_row_that_can_be_chosen_has_a_button_for_the_keyboard() -> None:
    markup = fragments.table(["name", "n"], [Row(("a", Cell.number(3)), "id-1", True), Row(("b", "c"))], "things")
    assert markup.count("<button") == 1
    assert 'data-id="id-1" aria-pressed="true"' in markup


def test_a_table_with_too_few_cells_is_a_mistake() -> None:
    with pytest.raises(ValueError):
        fragments.table(["a", "b"], [Row(("only one",))], "x")


# -- conversations


def test_with_prompt_starts_every_pane_with_the_system_message() -> None:
    assert with_prompt([], 2, "hi", "be brief") == [[["system", "be brief"], ["user", "hi"]]] * 2


def test_with_prompt_goes_on_with_what_was_said() -> None:
    said: list[Conversation] = [[["user", "a"], ["assistant", "b"]]]
    assert with_prompt(said, 1, "c", "ignored now") == [[["user", "a"], ["assistant", "b"], ["user", "c"]]]
    assert len(said[0]) == 2  # the past is not changed


def test_answered_gives_every_pane_its_own_text() -> None:
    from studio.views import ChatChunk

    chunk = ChatChunk(("x", "y"), ("", "abc"), True)
    assert answered([[["user", "q"]], [["user", "q"]]], chunk) == [
        [["user", "q"], ["assistant", "x"]],
        [["user", "q"], ["assistant", "y"]],
    ]


def test_pane_tells_what_was_really_used(t: Translator) -> None:
    said: Conversation = [["system", "s"], ["user", "q"], ["assistant", ""]]
    waiting = pane_html(ChatPane("a", "mine"), said, None, "…", t)
    assert "sha256" not in waiting and "…" in waiting
    assert t("compare.no_adapter") in pane_html(ChatPane(None, "base"), said, "", "", t)
    assert "sha256 0123456789ab" in pane_html(ChatPane("a", "mine"), said, "0123456789abcdef", "", t)


def test_first_question_finds_system_and_user() -> None:
    turns = [("system", "s"), ("user", "first"), ("assistant", "x"), ("user", "second")]
    assert first_question(turns) == ("s", "first")
    assert first_question([("text", "plain")]) is None
