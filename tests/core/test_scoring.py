"""Scoring of answers, against cases counted by hand."""

from __future__ import annotations

import sys

import pytest

from core.errors import ConfigError
from core.scoring.answers import as_object, score, token_f1
from core.scoring.labels import confusion_matrix, label_scores
from core.scoring.translation import translation_scores

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


def test_shared_words_are_counted_as_squad_does() -> None:
    assert token_f1(["the red house"], ["A red house!"]) == 1.0
    assert token_f1(["half past five"], ["at half past six"]) == pytest.approx(2 * 2 / (3 + 4))
    assert token_f1(["yes", "no"], ["yes", "maybe"]) == 0.5
    assert token_f1(["酱油"], ["洗酱油"]) == pytest.approx(4 / 5)
    assert token_f1([""], [""]) == 1.0 and token_f1([""], ["word"]) == 0.0


def test_labels_are_scored_one_by_one_and_as_sets() -> None:
    expected, given = [(0,), (0,), (1,), (2,)], [(0,), (1,), (1,), (1,)]
    scores = label_scores(expected, given, 3)
    # By hand: F1 of label 0 is 2/3, of 1 it is 2/4, of 2 it is 0.
    assert scores == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 2 / 4) / 3)}
    assert confusion_matrix([0, 0, 1, 2], [0, 1, 1, 1], 3) == ((1, 1, 0), (0, 1, 0), (0, 1, 0))
    several = label_scores([(0, 1), (1,)], [(0,), (1,)], 2)
    assert several == {"accuracy": 0.5, "macro_f1": pytest.approx((1 + 2 / 3) / 2), "micro_f1": pytest.approx(4 / 5)}
    assert label_scores([], [], 2) == {}


def test_translations_are_scored_by_sacrebleu(monkeypatch: pytest.MonkeyPatch) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    want, have = ["Le chat dort sur le lit.", "Il pleut."], ["Le chat dort dans le lit.", "Il pleut."]
    scores = translation_scores(want, have)
    assert scores["bleu"] == sacrebleu.BLEU().corpus_score(have, [want]).score
    assert scores["chrf"] == sacrebleu.CHRF().corpus_score(have, [want]).score
    assert translation_scores(want, want)["bleu"] == pytest.approx(100)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ConfigError, match="sacrebleu") as missing:
        translation_scores(want, have)
    assert "pip install" in missing.value.fix
