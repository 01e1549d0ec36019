"""Which task a model and a dataset make, and what is refused before anything is loaded."""

from __future__ import annotations

import pytest

from core.errors import ConfigError
from core.family import family_of
from core.tasks.choice import choose_task


@pytest.mark.parametrize(
    ("family", "format", "task"),
    [
        ("causal", "messages", "completion"),
        ("causal", "text_label", "completion"),
        ("causal", "source_target", "completion"),
        ("causal", "preference", "preference"),
        ("encoder", "text_label", "classification"),
        ("seq2seq", "question_answer", "question_answering"),
        ("seq2seq", "source_target", "translation"),
    ],
)
def test_the_task_follows_from_model_and_dataset(family: str, format: str, task: str) -> None:
    assert choose_task("auto", family, format) == task


def test_what_is_wanted_counts_where_it_fits() -> None:
    assert choose_task("classification", "causal", "text_label") == "classification"
    assert choose_task("classification", "encoder", "question_answer") == "classification"
    assert choose_task("translation", "seq2seq", "messages") == "translation"


@pytest.mark.parametrize(
    ("wanted", "family", "format", "reason"),
    [
        ("completion", "encoder", "messages", "'encoder' cannot learn the task 'completion'"),
        ("translation", "causal", "source_target", "'causal' cannot learn the task 'translation'"),
        ("preference", "causal", "messages", "needs 'preference'"),
        ("auto", "encoder", "messages", "can only give labels"),
        ("auto", "seq2seq", "preference", "'seq2seq' cannot learn the task 'preference'"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(wanted: str, family: str, format: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_task(wanted, family, format)
    assert reason in refused.value.what and refused.value.fix


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "encoder"),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"]}, "causal"),
        ({"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]}, "encoder"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "seq2seq"),
        (
            {"model_type": "bart", "is_encoder_decoder": True, "architectures": ["BartForConditionalGeneration"]},
            "seq2seq",
        ),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "causal"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "causal"),
    ],
)
def test_families_are_told_by_the_config(config: dict[str, object], family: str) -> None:
    assert family_of(config) == family
