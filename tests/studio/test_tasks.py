"""Every task through the studio's own jobs, on toy models: train, measured while it trains, merge, evaluate."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig, to_dict
from core.errors import ModelError
from studio.score_sheet import read_scores
from studio.service import Studio
from studio.token_counts import token_lengths
from tests import toy
from tests.live import LiveStudio
from tests.studio.test_kinds import run

CONFIG = TrainConfig(
    max_steps=30, epochs=1000, batch_size=8, eval_every=10, patience=0, dtype="float32",
    data=DataConfig(validation_share=0.25), adapter=AdapterConfig(r=8, lora_alpha=16),
    optim=OptimConfig(learning_rate=1e-2),
)  # fmt: skip
MOODS = {"good": ("fine", "lovely", "great", "superb"), "bad": ("awful", "poor", "weak", "dull")}
LABELLED = [
    {"text": f"{row} it is {MOODS[label][row % 4]}", "label": label} for row, label in enumerate(["good", "bad"] * 24)
]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStudio]:
    with LiveStudio(tmp_path_factory.mktemp("tasks") / "workspace") as live:
        yield live


@pytest.fixture(scope="module")
def classifier(live: LiveStudio, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished job that trained a classifier of `LABELLED`, on a model in a folder of its own."""
    return trained(live, encoder(tmp_path_factory.mktemp("bert") / "model"), LABELLED)


def encoder(folder: Path) -> Path:
    from transformers import BertConfig, BertModel

    tokenizer = toy.make_tokenizer(folder)
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(tokenizer),
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def trained(live: LiveStudio, folder: Path, rows: list[dict[str, Any]], config: TrainConfig = CONFIG) -> Any:
    model, dataset = toy.register_model(live, folder), toy.register_rows(live, rows)
    job = run(live, "train", {"model_id": model.id, "dataset_id": dataset.id, "train": to_dict(config)})
    assert job.state == "succeeded", (job.error_what, job.error_detail)
    return job


def test_a_classifier_trains_is_measured_and_merges(live: LiveStudio, classifier: Any) -> None:
    job = classifier
    assert job.result["task"] == "classification"
    before, after = job.result["scores"]["before"], job.result["scores"]["after"]
    assert before["accuracy"] <= 0.75 and after["accuracy"] >= 0.9
    curves = live.store.metrics(job.id)
    assert [step for step, _ in curves["macro_f1"]] == [step for step, _ in curves["eval_loss"]] == [0, 10, 20, 30]
    sheet = read_scores(live.workspace.run_folder(job.id))
    assert [entry["step"] for entry in sheet] == [0, 10, 20, 30]
    assert sheet[0]["labels"] == ["bad", "good"] and sum(map(sum, sheet[0]["confusion"])) == 12
    folder = toy.library(live).adapter_folder(toy.library(live).adapter(job.result["adapter_id"]))
    assert json.loads((folder / "task.json").read_text())["labels"] == ["bad", "good"]

    merged = run(live, "merge", {"adapter_id": job.result["adapter_id"]})
    assert merged.state == "succeeded", (merged.error_what, merged.error_detail)
    assert merged.result["verification"]["max_logit_difference"] < 1e-4
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    plain = toy.library(live).model_folder(toy.library(live).model(merged.result["model_id"]))
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(plain), AutoTokenizer.from_pretrained(plain)
    found = model(**tokenizer(LABELLED[0]["text"], return_tensors="pt")).logits.argmax().item()
    assert model.config.id2label[found] == "good"


def test_only_the_new_head_of_an_encoder_may_train(live: LiveStudio, tmp_path: Path) -> None:
    head = AdapterConfig(method="partial", method_options={"part": "head"})
    config = dataclasses.replace(CONFIG, adapter=head, optim=OptimConfig(learning_rate=5e-2))
    job = trained(live, encoder(tmp_path / "bert"), LABELLED, config)
    folder = toy.library(live).adapter_folder(toy.library(live).adapter(job.result["adapter_id"]))
    saved = [name for file in folder.glob("*.safetensors") for name in load_file(file)]
    assert saved and all("classifier" in name for name in saved)
    losses = [loss for _, loss in live.store.metrics(job.id)["loss"]]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_a_text_may_have_several_labels(live: LiveStudio, tmp_path: Path) -> None:
    rows = [
        {"text": f"{row} {'lovely ' * (row % 2)}{'loud ' * (row % 3 == 0)}thing", "label": labels}
        for row in range(48)
        if (labels := ", ".join(name for name, on in (("good", row % 2), ("noisy", row % 3 == 0)) if on))
    ]
    config = dataclasses.replace(CONFIG, data=DataConfig(validation_share=0.25, multi_label=True), max_steps=60)
    job = trained(live, encoder(tmp_path / "bert"), rows, config)
    before, after = job.result["scores"]["before"], job.result["scores"]["after"]
    assert after["micro_f1"] > before.get("micro_f1", 0.0) and after["accuracy"] > before["accuracy"]


def test_what_does_not_fit_is_refused_before_and_in_the_job(live: LiveStudio, tmp_path: Path) -> None:
    model, dataset = toy.register_model(live, encoder(tmp_path / "bert")), toy.register_dataset(live)
    job = run(live, "train", {"model_id": model.id, "dataset_id": dataset.id, "train": to_dict(CONFIG)})
    assert job.state == "failed" and "can only give labels" in job.error_what and not job.error_detail


def test_seq2seq_trains_is_scored_and_evaluated(live: LiveStudio, tmp_path: Path) -> None:
    from tests.core.test_seq2seq import toy_t5

    folder = tmp_path / "t5"
    tokenizer = toy.make_tokenizer(folder)
    base = toy_t5()
    base.resize_token_embeddings(len(tokenizer))
    base.save_pretrained(folder)
    config = dataclasses.replace(CONFIG, max_steps=20, answer_rows=4, answer_every=10)
    job = trained(
        live, folder, [{"source": row["question"], "target": row["answer"]} for row in toy.animal_rows()], config
    )
    assert job.result["task"] == "translation"
    assert {"bleu", "chrf", "exact_match", "token_f1", "perplexity"} <= job.result["scores"]["after"].keys()
    before, after = job.result["scores"]["before"], job.result["scores"]["after"]
    assert after["perplexity"] < 0.9 * before["perplexity"]
    sheet = {entry["step"]: entry for entry in read_scores(live.workspace.run_folder(job.id))}
    assert [len(sheet[step]["answers"]) for step in (0, 10, 20)] == [4, 4, 4]
    spec = {"model_id": job.spec["model_id"], "dataset_id": job.spec["dataset_id"], "adapter_ids": [job.id]}
    measured = run(live, "evaluate", spec)
    assert measured.state == "succeeded", (measured.error_what, measured.error_detail)
    scores = measured.result["scores"]
    assert scores[job.id]["loss"] < scores["base"]["loss"] and measured.result["task"] == "translation"


def test_a_classifier_is_evaluated_with_its_labels(live: LiveStudio, classifier: Any) -> None:
    job = classifier
    spec = {"model_id": job.spec["model_id"], "dataset_id": job.spec["dataset_id"], "adapter_ids": [job.id]}
    measured = run(live, "evaluate", spec)
    assert measured.state == "succeeded", (measured.error_what, measured.error_detail)
    assert measured.result["scores"].keys() == {job.id} and measured.result["scores"][job.id]["accuracy"] >= 0.9
    alone = run(live, "evaluate", spec | {"adapter_ids": []})
    assert alone.error_what == "The base model has no labels."


def test_compare_shows_labels_with_their_probabilities(live: LiveStudio, classifier: Any) -> None:
    from studio.chat import Engine

    row = toy.library(live).adapter(classifier.id)
    base = toy.library(live).model_folder(toy.library(live).model(row.model_id))
    request = {
        "model": str(base), "adapters": [None, str(toy.library(live).adapter_folder(row))],
        "conversations": [[["user", LABELLED[0]["text"]]]] * 2, "settings": {},
    }  # fmt: skip
    last = list(Engine().answer(request, lambda: False))[-1]
    assert last["done"] and last["sha256"] == ["", row.sha256]
    nothing, labels = last["texts"]
    first, second = (line.split("  ") for line in labels.splitlines())
    assert nothing == "—" and (first[0], second[0]) == ("good", "bad")
    with pytest.raises(ModelError, match="writes no texts, and it has no labels"):
        list(Engine().answer(request | {"adapters": [None], "conversations": [[["user", "Hi"]]]}, lambda: False))
    assert float(first[1].rstrip(" %")) + float(second[1].rstrip(" %")) == pytest.approx(100, abs=0.11)


def test_preferences_are_tuned_and_evaluated(live: LiveStudio, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{row} What is {row}?", "chosen": f"It is {row}.", "rejected": f"Who knows {row}"}
        for row in range(40)
    ]
    config = dataclasses.replace(CONFIG, max_steps=20)
    job = trained(live, toy.save_model(tmp_path / "llama"), rows, config)
    assert job.result["task"] == "preference"
    studio = Studio(live.workspace.root)
    plan = studio.plan(job.spec["model_id"], job.spec["dataset_id"], config)
    open_rate = dataclasses.replace(config, optim=OptimConfig())
    picked = studio.plan(job.spec["model_id"], job.spec["dataset_id"], open_rate)
    assert any(check.text == f"The learning rate will be {picked.learning_rate:g}." for check in picked.checks)
    lengths = token_lengths(tmp_path / "llama", studio.dataset_shelf.records(job.spec["dataset_id"]))
    assert len(lengths) == 80 and plan.tokens_per_epoch == round(sum(lengths) / 40 * plan.rows)
    studio.close()
    scores = job.result["scores"]
    assert scores["before"]["preference_accuracy"] == 0.5 and scores["after"]["preference_accuracy"] >= 0.9
    spec = {"model_id": job.spec["model_id"], "dataset_id": job.spec["dataset_id"], "adapter_ids": [job.id]}
    measured = run(live, "evaluate", spec)
    assert measured.state == "succeeded", (measured.error_what, measured.error_detail)
    assert measured.result["scores"]["base"]["preference_margin"] == 0.0
    assert measured.result["scores"][job.id]["preference_accuracy"] >= 0.9
