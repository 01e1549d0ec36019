"""Scoring of answers, against cases counted by hand."""

from __future__ import annotations

from studio.scoring import as_object, score

TICKETS = ['{"product": "phone", "urgency": "low"}', '{"product": "tv", "urgency": "high"}']


def test_right_answers_score_one_everywhere() -> None:
    made = score(TICKETS, TICKETS, ["product", "urgency"])
    assert made == {
        "exact_match": 1.0,
        "valid_json": 1.0,
        "fields": {"product": 1.0, "urgency": 1.0},
        "named_fields": 1.0,
    }


def test_each_field_counts_by_itself_and_all_named_ones_together() -> None:
    given = ['{"product": "phone", "urgency": "high", "extra": 1}', '{"product": "tv", "urgency": "high"}']
    made = score(TICKETS, given, ["product", "urgency"])
    assert made["fields"] == {"product": 1.0, "urgency": 0.5}
    assert (made["named_fields"], made["valid_json"], made["exact_match"]) == (0.5, 1.0, 0.5)


def test_a_missing_key_or_text_around_the_json_is_not_valid() -> None:
    made = score(TICKETS, ['{"product": "phone"}', f"Sure! {TICKETS[1]}"])
    assert made["valid_json"] == 0.0 and made["fields"]["product"] == 0.5


def test_plain_answers_have_no_json_figures() -> None:
    assert score(["yes", "no"], [" yes\n", "maybe"]) == {"exact_match": 0.5}


def test_nothing_to_score() -> None:
    assert score([], []) == {}


def test_only_a_whole_object_is_an_object() -> None:
    assert as_object('{"a": 1}') == {"a": 1}
    assert [as_object(text) for text in ("[1]", "1", "", '{"a": 1', '{"a": 1} x', "[" * 100_000)] == [None] * 6
