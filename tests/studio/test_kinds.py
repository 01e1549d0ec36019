"""The kinds of jobs on a toy model, in this process: train, merge and add a model, and what can go wrong with each."""

import dataclasses
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.checkpoint import checkpoints
from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig, to_dict
from core.errors import ModelError
from studio.attempt import Attempt
from studio.context import JobContext
from studio.kinds import kinds
from studio.kinds.add_model import absolute_source
from studio.tables import JobRow, ModelRow
from studio.views import TOKENISING
from studio.worker import work
from tests import toy
from tests.live import LiveStudio

CONFIG = TrainConfig(
    max_steps=12, epochs=100, batch_size=8, eval_every=4, save_every=4, patience=0, dtype="float32",
    data=DataConfig(validation_share=0.2), adapter=AdapterConfig(r=4, lora_alpha=8),
    optim=OptimConfig(learning_rate=1e-2),
)  # fmt: skip


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.save_model(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveStudio]:
    with LiveStudio(tmp_path / "workspace") as live:
        yield live


def run(live: LiveStudio, kind: str, spec: dict[str, Any], name: str = "job") -> JobRow:
    """Queue a job, work on it in this process, and return it as it ended."""
    job = live.store.submit(kind, name, spec)
    claim = live.store.claim("cpu", [kind])
    assert claim is not None
    live.workspace.run_folder(job.id).mkdir(exist_ok=True)
    live.workspace.scratch(job.id).mkdir(exist_ok=True)
    assert work(live.workspace, Attempt(live.database, job.id, claim.attempt), threading.Event()) == 0
    return live.job(job.id)


def train_spec(live: LiveStudio, model_folder: Path, config: TrainConfig = CONFIG) -> dict[str, Any]:
    model, dataset = toy.register_model(live, model_folder), toy.register_dataset(live)
    return {"model_id": model.id, "dataset_id": dataset.id, "train": to_dict(config)}


def test_the_kinds_are_known_with_their_needs() -> None:
    needs = {name: (kinds.get(name).needs_device, kinds.get(name).needs_network) for name in kinds.names()}
    expected = {"train": (True, False), "merge": (True, False), "selftest": (True, False), "add_model": (False, True)}
    assert needs.items() >= expected.items()


# -- train


def test_training_files_its_best_adapter(live: LiveStudio, model_folder: Path) -> None:
    spec = train_spec(live, model_folder)
    job = run(live, "train", spec, "animals")
    assert job.state == "succeeded", (job.error_what, job.error_detail)
    assert (job.step, job.total_steps, job.message) == (12, 12, "Done")
    row = toy.library(live).adapter(job.result["adapter_id"])
    best = min(live.store.metrics(job.id)["eval_loss"], key=lambda point: point[1])
    assert (row.step, row.eval_loss) == best == (job.best_step, job.best_eval_loss)
    assert (row.name, row.model_id, row.job_id, row.method, row.r, row.lora_alpha) == (
        "animals", spec["model_id"], job.id, "lora", 4, 8.0,
    )  # fmt: skip
    folder = toy.library(live).adapter_folder(row)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    weights = load_file(folder / "adapter_model.safetensors")
    assert row.parameters == sum(tensor.numel() for tensor in weights.values())
    assert row.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "toy"
    assert str(model_folder) not in (folder / "adapter_config.json").read_text()
    assert [set(curve) for curve in ([step for step, _ in live.store.metrics(job.id)[name]] for name in
            ("loss", "learning_rate", "grad_norm", "tokens_per_second"))] == [set(range(1, 13))] * 4  # fmt: skip


def test_only_the_newest_checkpoints_and_the_best_are_kept(live: LiveStudio, model_folder: Path) -> None:
    config = dataclasses.replace(CONFIG, keep_checkpoints=1, optim=OptimConfig(learning_rate=0.5, schedule="constant"))
    job = run(live, "train", train_spec(live, model_folder, config))
    kept = {info.step for info in checkpoints(live.workspace.checkpoints_folder(job.id))}
    assert kept == {12, job.best_step}


def test_without_validation_the_last_step_is_the_result(live: LiveStudio, model_folder: Path) -> None:
    config = dataclasses.replace(CONFIG, data=DataConfig(validation_share=0.0))
    job = run(live, "train", train_spec(live, model_folder, config))
    row = toy.library(live).adapter(job.result["adapter_id"])
    assert (row.step, row.eval_loss, job.best_step, job.best_eval_loss) == (12, None, None, None)


def test_a_damaged_best_checkpoint_costs_no_training(
    live: LiveStudio, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studio.kinds import train

    original = train._file

    def damage_then_file(context: Any, trainer: Any, model: Any, folder: Path) -> Any:
        trainer.best_step = 4
        (folder / "step-000004").mkdir(exist_ok=True)
        return original(context, trainer, model, folder)

    monkeypatch.setattr(train, "_file", damage_then_file)
    job = run(live, "train", train_spec(live, model_folder))
    assert toy.library(live).adapter(job.result["adapter_id"]).step == 12


def test_rows_without_room_for_an_answer_are_named_in_the_log(
    live: LiveStudio, model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    prompts = [f"<|im_start|>user\n{row} What does the {toy.ANIMALS[row % 10]} say?<|im_end|>\n" for row in range(60)]
    lengths = sorted(len(tokenizer(f"{prompt}<|im_start|>assistant\n").input_ids) for prompt in prompts)
    config = dataclasses.replace(CONFIG, data=DataConfig(validation_share=0.0, max_length=lengths[30]), max_steps=1)
    assert run(live, "train", train_spec(live, model_folder, config)).state == "succeeded"
    assert f"rows are left out, their prompts exceed {lengths[30]} tokens: " in caplog.text
    assert caplog.text.rstrip().count(", ...") == 1


def test_a_changed_dataset_is_not_trained_on(live: LiveStudio, model_folder: Path) -> None:
    spec = train_spec(live, model_folder)
    row = toy.library(live).dataset(spec["dataset_id"])
    toy.write_dataset(live.workspace.dataset_folder(row.id) / row.stored_name, rows=59)
    job = run(live, "train", spec)
    assert (job.state, job.error_what) == ("failed", "The stored file of animals was changed.")


def test_a_missing_model_or_dataset_is_explained(live: LiveStudio, model_folder: Path, tmp_path: Path) -> None:
    spec = train_spec(live, model_folder)
    assert "no dataset" in run(live, "train", spec | {"dataset_id": "0" * 14}).error_what
    assert "no model" in run(live, "train", spec | {"model_id": "0" * 14}).error_what
    moved = shutil.copytree(model_folder, tmp_path / "moved")
    spec |= {"model_id": toy.register_model(live, moved).id}
    shutil.rmtree(moved)
    job = run(live, "train", spec)
    assert job.error_what == "The folder of toy is gone."
    assert job.error_fix


def test_targets_that_match_nothing_are_explained(live: LiveStudio, model_folder: Path) -> None:
    config = dataclasses.replace(CONFIG, adapter=AdapterConfig(target_modules=("no_such_layer",)))
    job = run(live, "train", train_spec(live, model_folder, config))
    assert job.state == "failed"
    assert "no_such_layer" in job.error_what + job.error_fix
    assert job.error_detail == ""


def test_a_diverging_run_stops_and_keeps_only_finite_checkpoints(
    live: LiveStudio, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.gradients import Gradients

    healthy = Gradients.of

    def poisoned(self: Gradients, rows: Any, step: int) -> Any:
        summed = healthy(self, rows, step)
        lost = [loss * float("nan") for loss in summed.losses]
        return dataclasses.replace(summed, losses=lost) if step == 6 else summed

    monkeypatch.setattr(Gradients, "of", poisoned)
    job = run(live, "train", train_spec(live, model_folder))
    assert job.state == "failed"
    assert "step 7" in job.error_what
    assert job.checkpoint_step == 4
    saved = checkpoints(live.workspace.checkpoints_folder(job.id))
    assert [info.step for info in saved] == [4]
    for path in saved[0].path.glob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values() if tensor.is_floating_point())
    assert [step for step, _ in live.store.metrics(job.id)["loss"]] == list(range(1, 7))


def test_running_out_of_memory_is_explained(
    live: LiveStudio, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("core.tasks.completion.loss_at", full)
    job = run(live, "train", train_spec(live, model_folder))
    assert job.state == "failed"
    assert "memory" in job.error_what
    assert "CUDA" not in job.error_what
    assert job.error_fix


def test_a_full_disk_is_explained_and_the_run_goes_on_later(
    live: LiveStudio, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        usage = shutil.disk_usage(live.workspace.root)._replace(free=10)
        full.setattr("core.durable.shutil.disk_usage", lambda path: usage)
        job = run(live, "train", train_spec(live, model_folder))
    assert job.state == "failed"
    assert "disk is full" in job.error_what
    live.store.resume(job.id)
    live.store.claim("cpu", ["train"])
    work(live.workspace, Attempt(live.database, job.id, 2), threading.Event())
    assert live.job(job.id).state == "succeeded"


# -- merge


@pytest.fixture
def adapter_id(live: LiveStudio, model_folder: Path) -> str:
    return str(run(live, "train", train_spec(live, model_folder), "animals").result["adapter_id"])


def test_a_merge_is_verified_and_filed(live: LiveStudio, adapter_id: str) -> None:
    job = run(live, "merge", {"adapter_id": adapter_id, "name": "merged animals"})
    assert job.state == "succeeded", (job.error_what, job.error_detail)
    assert job.step == job.total_steps > 0
    row = toy.library(live).model(job.result["model_id"])
    adapter = toy.library(live).adapter(adapter_id)
    assert (row.name, row.kind, row.base_id, row.job_id) == ("merged animals", "merged", adapter.model_id, job.id)
    assert row.folder is None
    assert job.result["verification"] == row.verified
    assert row.verified["adapter_sha256"] == adapter.sha256
    assert row.verified["max_logit_difference"] <= 1e-4
    assert row.verified["top1_agreement"] == 1.0
    folder = toy.library(live).model_folder(row)
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(
        toy.library(live).model_folder(toy.library(live).model(adapter.model_id))
    )
    tokens = torch.arange(10)[None]
    assert not torch.equal(merged(tokens).logits, base(tokens).logits)


def test_a_quantised_run_is_merged_into_the_base_that_it_trained_with(live: LiveStudio, model_folder: Path) -> None:
    config = dataclasses.replace(CONFIG, quantization="nf4")
    trained = run(live, "train", train_spec(live, model_folder, config))
    assert trained.state == "succeeded", (trained.error_what, trained.error_detail)
    adapter_id = trained.result["adapter_id"]
    folder = toy.library(live).adapter_folder(toy.library(live).adapter(adapter_id))
    assert json.loads((folder / "method.json").read_text()) == {"quantization": "nf4"}
    merged = run(live, "merge", {"adapter_id": adapter_id})
    assert merged.state == "succeeded", (merged.error_what, merged.error_detail)
    assert merged.result["verification"]["max_logit_difference"] <= 1e-4
    other = run(live, "merge", {"adapter_id": adapter_id, "base_precision": "16-bit"})
    assert other.state == "succeeded", (other.error_what, other.error_detail)
    assert other.result["verification"]["max_logit_difference"] > 1e-3


def test_a_wrong_merge_is_not_kept(live: LiveStudio, adapter_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.verify import MergeCheck

    for figure in (0.5, float("nan")):
        wrong = MergeCheck(10, "float32", figure, 0.1, 0.5, figure)
        monkeypatch.setattr("core.verify.verify_merge", lambda *folders, wrong=wrong, **options: wrong)
        job = run(live, "merge", {"adapter_id": adapter_id})
        assert job.state == "failed"
        assert "does not answer like base and adapter" in job.error_what
        assert not live.workspace.model_folder(job.id).exists()
        assert not (live.workspace.scratch(job.id) / "model").exists()
        assert all(row.kind == "base" for row in toy.library(live).models())


def test_a_merge_goes_over_what_a_killed_one_left(live: LiveStudio, adapter_id: str) -> None:
    job = live.store.submit("merge", "merge", {"adapter_id": adapter_id})
    for leftover in (live.workspace.scratch(job.id) / "model", live.workspace.model_folder(job.id)):
        leftover.mkdir(parents=True)
        (leftover / "half.safetensors").write_bytes(b"half")
    live.store.claim("cpu", ["merge"])
    live.workspace.run_folder(job.id).mkdir()
    work(live.workspace, Attempt(live.database, job.id, 1), threading.Event())
    assert live.job(job.id).state == "succeeded"
    assert not (live.workspace.model_folder(job.id) / "half.safetensors").exists()


def test_a_merge_can_be_cancelled_between_two_tensors(
    live: LiveStudio, adapter_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studio.context import JobContext

    original = JobContext.advance

    def cancelled_midway(self: JobContext, done: int, total: int) -> None:
        if done == 3:
            live.store.cancel(self.job.id)
        original(self, done, total)

    monkeypatch.setattr(JobContext, "advance", cancelled_midway)
    job = run(live, "merge", {"adapter_id": adapter_id})
    assert (job.state, job.result) == ("cancelled", {})
    assert not live.workspace.model_folder(job.id).exists()


# -- add a model


def added(live: LiveStudio, job: JobRow) -> ModelRow:
    assert job.state == "succeeded", (job.error_what, job.error_detail)
    return toy.library(live).model(job.result["model_id"])


def test_a_folder_is_used_in_place_and_never_deleted(live: LiveStudio, model_folder: Path) -> None:
    row = added(live, run(live, "add_model", {"source": str(model_folder), "name": ""}))
    assert (row.name, row.folder, row.kind, row.architecture) == (
        "model",
        str(model_folder),
        "base",
        "LlamaForCausalLM",
    )
    assert row.has_chat_template
    assert {target["name"] for target in row.targets} >= {"q_proj", "down_proj", "embed_tokens"}
    assert toy.library(live).model_folder(row) == model_folder
    toy.library(live).delete_model(row.id)
    assert (model_folder / "config.json").exists()


def test_the_starter_is_fetched_into_the_workspace(
    live: LiveStudio, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(folder: Path, progress: Any) -> str:
        progress("Fetching")
        shutil.copytree(model_folder, folder)
        return "hub: somebody/small"

    monkeypatch.setattr("studio.starter.fetch_starter", fetch)
    job = run(live, "add_model", {"source": "starter", "name": ""})
    row = added(live, job)
    assert (row.id, row.folder, row.source, row.name) == (job.id, None, "hub: somebody/small", "SmolLM2-135M-Instruct")
    assert (live.workspace.model_folder(job.id) / "model.safetensors").exists()
    toy.library(live).delete_model(row.id)
    assert not live.workspace.model_folder(job.id).exists()


def test_a_hub_model_is_downloaded_without_the_clients_notes(
    live: LiveStudio, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(hub_id: str, folder: Path) -> Path:
        shutil.copytree(model_folder, folder)
        (folder / ".cache").mkdir()
        return folder

    monkeypatch.setattr("core.hub.download_model", download)
    row = added(live, run(live, "add_model", {"source": "somebody/small", "name": "mine"}))
    assert (row.name, row.source) == ("mine", "hub: somebody/small")
    assert not (toy.library(live).model_folder(row) / ".cache").exists()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda folder: folder / "missing", "There is no folder or file"),
        (lambda folder: folder / "missing.gguf", "There is no folder or file"),
        (lambda folder: write(folder / "fake.gguf", "not one"), "is not a GGUF file"),
        (lambda folder: write(folder / "empty" / "x.txt", "").parent, "no config.json"),
        (lambda folder: write(folder / "pickle" / "config.json", "{}", "w.bin").parent, "only pickle weights"),
        (lambda folder: write(folder / "code" / "config.json", '{"auto_map": {}}').parent, "run its own Python code"),
        (lambda folder: "not-a-hub-id", "no model 'not-a-hub-id'"),
    ],
)
def test_what_cannot_be_added_is_explained(live: LiveStudio, make: Any, what: str, tmp_path: Path) -> None:
    job = run(live, "add_model", {"source": str(make(tmp_path)), "name": ""})
    assert job.state == "failed"
    assert what in job.error_what
    assert job.error_fix
    assert job.error_detail == ""
    assert toy.library(live).models() == []


def write(path: Path, text: str, *more: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    for name in more:
        path.with_name(name).write_text("")
    return path


def test_a_broken_download_files_nothing(live: LiveStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(hub_id: str, folder: Path) -> Path:
        raise ModelError("The hub could not be reached.", "Check the connection.")

    monkeypatch.setattr("core.hub.download_model", download)
    job = run(live, "add_model", {"source": "somebody/small", "name": ""})
    assert (job.state, job.error_what) == ("failed", "The hub could not be reached.")
    assert not live.workspace.model_folder(job.id).exists()


def test_relative_paths_are_made_absolute_and_the_rest_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    assert absolute_source("owner") == str(tmp_path / "owner")
    for source in ("starter", "owner/name", "/no/such/folder"):
        assert absolute_source(source) == source


def test_a_second_job_on_the_same_rows_tokenises_nothing(
    live: LiveStudio, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.data import template

    told: list[dict[str, Any]] = []
    record, say = JobContext.record, JobContext.say

    def noted(self: JobContext, step: int, values: Any, **columns: Any) -> None:
        told.append({"step": step, **columns})
        record(self, step, values, **columns)

    def said(self: JobContext, message: str, **columns: Any) -> None:
        told.append({"message": message, **columns})
        say(self, message, **columns)

    monkeypatch.setattr(JobContext, "record", noted)
    monkeypatch.setattr(JobContext, "say", said)
    spec = train_spec(live, model_folder)
    first = run(live, "train", spec)
    assert first.state == "succeeded" and len(list(live.workspace.tokens.glob("*.arrow"))) == 1
    counted = told.index({"step": 60, "total_steps": 60, "eta_s": None})
    assert told[counted - 1]["message"].startswith(TOKENISING)  # which is how the page knows that these are rows
    assert told[counted + 1].pop("message") and told[counted + 1] == {"step": 0, "total_steps": 0, "eta_s": None}
    monkeypatch.setattr(template, "_part", None)
    other = train_spec(live, model_folder, dataclasses.replace(CONFIG, seed=3))
    second = run(live, "train", {**other, "dataset_id": spec["dataset_id"]}, "second")
    assert second.state == "succeeded" and second.result["adapter_id"] != first.result["adapter_id"]
