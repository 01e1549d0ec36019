import dataclasses
from pathlib import Path

import pytest

from core.errors import AdapterError, DatasetError, ModelError
from core.models import ModelInfo, Target
from studio.artifacts import Library, model_row
from studio.db import Database
from studio.jobs import JobStore
from studio.tables import AdapterRow, DatasetRow, ModelRow
from studio.workspace import Workspace


@pytest.fixture
def library(tmp_path: Path) -> Library:
    workspace = Workspace.open(tmp_path)
    return Library(Database.open(workspace), workspace)


def a_model(library: Library, **facts: object) -> ModelRow:
    target = Target("q_proj", "attention", ((8, 4), (8, 4)), ("a", "b"))
    info = ModelInfo(Path("x"), "LlamaForCausalLM", "llama", 10, "float32", 128, 8, 16, 2, 2, 50, True, False, "mit",
                     99, (target,))  # fmt: skip
    row = model_row(info, **({"name": "base", "source": "here"} | facts))
    library.add(row)
    return row


def a_dataset(library: Library) -> DatasetRow:
    row = DatasetRow(
        name="data", file_name="../../evil.csv", stored_name="data.csv", format="text", rule="r", share=1.0, rows=3,
        bad_rows=0, sha256="0", size_bytes=1, problems=[{"row": 1, "kind": "empty"}],
    )  # fmt: skip
    library.workspace.dataset_folder(row.id).mkdir()
    (library.workspace.dataset_folder(row.id) / row.stored_name).write_text("x")
    library.add(row)
    return row


def an_adapter(library: Library, model: ModelRow, method: str = "lora", eval_loss: float | None = None) -> AdapterRow:
    row = AdapterRow(name="tuned", model_id=model.id, method=method, r=4, lora_alpha=8.0, parameters=5, size_bytes=6,
                     sha256="0", step=7, eval_loss=eval_loss)  # fmt: skip
    library.workspace.adapter_folder(row.id).mkdir()
    library.add(row)
    return row


def test_rows_come_back_as_they_were_filed_newest_first(library: Library) -> None:
    first, second, dataset = a_model(library), a_model(library, name="second"), a_dataset(library)
    adapter = an_adapter(library, first)
    assert [row.name for row in library.models()] == ["second", "base"]
    found = library.model(first.id)
    assert found.targets == [{"name": "q_proj", "group": "attention", "shapes": [[8, 4], [8, 4]]}]
    assert (found.parameters, found.context_length, found.hidden_size, found.vocab_size) == (10, 128, 8, 50)
    assert dataclasses.asdict(library.dataset(dataset.id)) == dataclasses.asdict(dataset)
    assert library.adapters(second.id) == []
    assert [row.id for row in library.adapters(first.id)] == [row.id for row in library.adapters()] == [adapter.id]


def test_unknown_ids_are_explained(library: Library) -> None:
    for ask, error in (
        (library.dataset, DatasetError), (library.model, ModelError), (library.adapter, AdapterError),
        (library.delete_dataset, DatasetError), (library.delete_model, ModelError),
        (library.delete_adapter, AdapterError),
    ):  # fmt: skip
        with pytest.raises(error, match="There is no"):
            ask("../../etc/passwd")


def test_deleting_takes_row_and_folder(library: Library) -> None:
    model, dataset = a_model(library), a_dataset(library)
    adapter = an_adapter(library, model)
    assert all(library.has(item.id) for item in (model, dataset, adapter))
    with pytest.raises(ModelError, match="has adapters"):
        library.delete_model(model.id)
    library.delete_adapter(adapter.id)
    assert not library.has(adapter.id) and library.has(model.id)
    (library.workspace.tokens / "kept.arrow").write_bytes(b"of this dataset, perhaps")
    library.delete_dataset(dataset.id)
    assert not library.workspace.tokens.exists()
    library.delete_model(model.id)
    assert not library.workspace.adapter_folder(adapter.id).exists()
    assert not library.workspace.dataset_folder(dataset.id).exists()
    assert (library.models(), library.datasets(), library.adapters()) == ([], [], [])


@pytest.mark.parametrize("state", ["queued", "running", "paused", "cancelled"])
def test_what_an_unfinished_job_needs_stays(library: Library, state: str) -> None:
    model, dataset = a_model(library), a_dataset(library)
    adapter = an_adapter(library, model)
    store = JobStore(library.database)
    spec = {"model_id": model.id, "dataset_id": dataset.id, "adapter_ids": [adapter.id]}
    job = store.submit("train", "my run", spec)
    {"queued": lambda job_id: None, "running": lambda job_id: store.claim("cpu", ["train"]), "paused": store.pause,
     "cancelled": store.cancel}[state](job.id)  # fmt: skip
    for delete, item in (
        (library.delete_dataset, dataset.id), (library.delete_adapter, adapter.id), (library.delete_model, model.id),
    ):  # fmt: skip
        if state == "cancelled":
            delete(item)
        else:
            with pytest.raises((DatasetError, ModelError, AdapterError), match=f"needed by the job my run .{state}"):
                delete(item)


def test_a_merged_model_outlives_its_base(library: Library) -> None:
    base = a_model(library)
    merged = a_model(library, name="merged", kind="merged", base_id=base.id)
    library.delete_model(base.id)
    assert library.model(merged.id).base_id is None
