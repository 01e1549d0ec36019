"""Every kind of failure is recognised, said in words, shown by a line of evidence, and has a remedy that holds."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig, from_dict, to_dict
from core.errors import (
    ConfigError,
    DatasetError,
    DiskFullError,
    DivergedError,
    GatedModelError,
    JobError,
    MissingModelError,
    NothingTrainedError,
    OutOfMemoryError,
)
from studio import failures
from studio.attempt import Attempt
from studio.failures import Failure, explain, explain_exit
from studio.log import HIDDEN
from studio.remedies import AGAIN, Case, changed, remedies
from studio.service import Studio
from studio.views import Check, PlanView
from tests import toy
from tests.live import LiveStudio
from tests.scenarios.plugin import Say


class TorchStyleOutOfMemory(RuntimeError):
    pass


TorchStyleOutOfMemory.__name__ = "OutOfMemoryError"


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (DatasetError("Line 3 is broken.", "Mend it."), "Line 3 is broken."),
        (MemoryError(), "memory of this machine was not enough"),
        (TorchStyleOutOfMemory("CUDA ..."), "memory of the GPU was not enough"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory of this machine"),
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full."),
        (ZeroDivisionError("division by zero\nsecond line"), "unexpected error: ZeroDivisionError: division by zero"),
        (KeyError("hf_abcdefghijklmnopqrstuvwx"), HIDDEN),
    ],
)
def test_failures_are_explained(error: Exception, what: str) -> None:
    with pytest.raises(type(error)) as caught:
        raise error
    failure = explain(caught.value)
    assert what in failure.what
    assert "second line" not in failure.what
    assert failure.fix
    assert ("Traceback" in failure.detail) != isinstance(error, DatasetError)
    assert "hf_" not in failure.detail


def test_torch_says_out_of_memory_in_a_way_we_know() -> None:
    code = (
        "import torch; from studio.failures import is_out_of_memory as known\n"
        "try: torch.empty(2**60)\n"
        "except RuntimeError as error: assert known(error), error\n"
        "assert known(torch.cuda.OutOfMemoryError('x'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


CUDA_MEMORY = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 10.25 GiB is "
    "free. Including non-PyTorch memory, this process has 68.85 GiB memory in use."
)
KINDS: list[tuple[Exception, str]] = [
    (TorchStyleOutOfMemory(CUDA_MEMORY), failures.GPU_MEMORY),
    (caused(OutOfMemoryError("8 rows do not fit.", "Less."), TorchStyleOutOfMemory(CUDA_MEMORY)), failures.GPU_MEMORY),
    (RuntimeError("CUDA error: out of memory"), failures.GPU_MEMORY),
    (MemoryError(), failures.HOST_MEMORY),
    (OutOfMemoryError("8 rows do not fit.", "Less."), failures.HOST_MEMORY),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
     failures.HOST_MEMORY),
    (OSError(errno.ENOSPC, "No space left on device"), failures.DISK_FULL),
    (caused(DiskFullError("The disk is full.", "Free some."), OSError(errno.ENOSPC, "No space")), failures.DISK_FULL),
    (DivergedError("The loss became NaN.", "Lower the rate."), failures.DIVERGED),
    (NothingTrainedError("No token is trained.", "Give answers."), failures.NOTHING_TRAINED),
    (MissingModelError("There is no model.", "Add it."), failures.MODEL_MISSING),
    (GatedModelError("owner/name is gated.", "Accept its terms."), failures.MODEL_GATED),
    (RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'"), failures.NUMBER_FORMAT),
    (TypeError("Got unsupported ScalarType BFloat16"), failures.NUMBER_FORMAT),
    (RuntimeError("CUDA error: unspecified launch failure"), failures.GPU_LOST),
    (RuntimeError("No CUDA GPUs are available"), failures.GPU_LOST),
    (RuntimeError("CUDA error: uncorrectable ECC error encountered"), failures.GPU_LOST),
    (DatasetError("Line 3 is broken.", "Mend it."), failures.REFUSED),
    (ZeroDivisionError("division by zero"), failures.UNKNOWN),
]  # fmt: skip


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_kind_is_recognised(error: Exception, kind: str) -> None:
    failure = explain(error)
    assert failure.kind == kind
    assert failure.what and failure.fix


@pytest.mark.scenario(18, 19, 20)
def test_all_kinds_are_told_apart(figure: Say) -> None:
    exits = [explain_exit(-signal.SIGKILL, True), explain_exit(-signal.SIGKILL), explain_exit(-signal.SIGSEGV)]
    found = {explain(error).kind for error, _ in KINDS} | {failure.kind for failure in exits}
    right = sum(explain(error).kind == kind for error, kind in KINDS)
    figure(f"{right} of {len(KINDS)} errors and 3 of 3 deaths recognised as {len(found)} kinds")
    assert right == len(KINDS) and len(found) == 13


def test_sizes_are_taken_from_the_message() -> None:
    for error in KINDS[0][0], KINDS[1][0]:
        failure = explain(error)
        assert "20.00 GiB more were needed and 10.25 GiB were free." in failure.what
        assert failure.evidence.startswith("OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.")


def test_the_evidence_is_the_root_cause() -> None:
    error = caused(DiskFullError("The disk is full.", "Free some."), OSError(errno.ENOSPC, "No space left on device"))
    assert explain(error).evidence == "OSError: [Errno 28] No space left on device"


@pytest.mark.parametrize(
    ("code", "out_of_memory", "kind", "evidence"),
    [(-9, True, failures.HOST_MEMORY, "one more"), (-9, False, failures.KILLED, "1.5 GiB of memory were free"),
     (-11, False, failures.CRASHED, "SIGSEGV"), (1, True, failures.CRASHED, "exit code 1")],
)  # fmt: skip
def test_a_silent_death_is_explained_from_its_exit(code: int, out_of_memory: bool, kind: str, evidence: str) -> None:
    failure = explain_exit(code, out_of_memory, int(1.5 * 2**30))
    assert failure.kind == kind and evidence in failure.evidence and failure.fix


# -- remedies


def planned(free: float, weights: float = 4.0, a_token: float = 0.001) -> Callable[[TrainConfig], PlanView]:
    """A plan of GiB: weights, a quarter of them in 4 bits, and a little for every token of a micro-batch."""

    def plan(config: TrainConfig) -> PlanView:
        rows, length = config.micro_batch_size or 8, config.data.max_length or 1024
        base = weights / 4 if config.quantization == "nf4" else weights
        need = int((base + a_token * rows * length) * 2**30)
        checks = (Check("ok", ""),) if config.adapter.method == "lora" else (Check("error", "no"),)
        return PlanView(checks, 1, 1, 1, 1, 1, 1, None, {}, need, int(free * 2**30), 1, "gpu",
                        micro_batch_size=rows, max_length=length, learning_rate=2e-4)  # fmt: skip

    return plan


def case(free: float = 10.0, config: TrainConfig | None = None, **size: float) -> Case:
    return Case(config or TrainConfig(), planned(free, **size), 2e-4)


def test_less_memory_offers_only_what_is_planned_to_fit() -> None:
    """12.2 GiB into 10: the batch once halved, the text once halved, or 4 bits and 9.2 GiB, which is too close."""
    offered = remedies(failures.GPU_MEMORY, case())
    assert [item.changes for item in offered] == [{"micro_batch_size": 4}, {"data.max_length": 512}, {}]
    assert offered[0].text == "Set micro_batch_size = 4: about 8.1 GiB instead of 12.2 GiB."
    for item in offered[:-1]:
        assert planned(10)(changed(TrainConfig(), item.changes)).memory_total_bytes <= 0.9 * 10 * 2**30


def test_a_run_that_was_planned_to_fit_is_made_smaller_all_the_same() -> None:
    offered = remedies(failures.GPU_MEMORY, case(free=80))
    assert len(offered) == 4 and offered[1].changes == {"quantization": "nf4"}
    for item in offered[:-1]:
        need = planned(80)(changed(TrainConfig(), item.changes)).memory_total_bytes
        assert need <= 0.8 * planned(80)(TrainConfig()).memory_total_bytes


def test_where_no_single_change_is_enough_they_are_combined() -> None:
    (all_of_it, again) = remedies(failures.HOST_MEMORY, case(free=2.0))
    assert all_of_it.changes == {"micro_batch_size": 1, "quantization": "nf4", "data.max_length": 512}
    assert again.name == AGAIN
    assert [item.name for item in remedies(failures.HOST_MEMORY, case(free=0.1))] == [AGAIN]


OTHERS: list[tuple[str, TrainConfig, dict[str, Any]]] = [
    (failures.DIVERGED, TrainConfig(), {"optim.learning_rate": 2e-5}),
    (failures.NOTHING_TRAINED, TrainConfig(), {"data.completion_only": False}),
    (failures.NOTHING_TRAINED, TrainConfig(data=DataConfig(max_length=16)), {"data.max_length": 0}),
    (failures.DISK_FULL, TrainConfig(), {"keep_checkpoints": 1}),
    (failures.NUMBER_FORMAT, TrainConfig(), {"dtype": "float32"}),
    (failures.GPU_LOST, TrainConfig(), {"device": "cpu"}),
    (failures.UNKNOWN, TrainConfig(), {}),
    (failures.MODEL_GATED, TrainConfig(), {}),
]


@pytest.mark.parametrize(("kind", "config", "changes"), OTHERS)
def test_the_first_remedy_of_the_other_kinds(kind: str, config: TrainConfig, changes: dict[str, Any]) -> None:
    offered = remedies(kind, case(config=config))
    assert offered[0].changes == changes and offered[-1].name == AGAIN
    (again,) = remedies(kind, None)  # of a job that trains nothing, and has no checkpoint
    assert again.name == AGAIN and "checkpoint" not in again.text


def test_changes_are_checked_like_any_setting() -> None:
    config = changed(TrainConfig(), {"optim.learning_rate": 1e-3, "epochs": 2, "adapter.r": 4})
    assert (config.optim.learning_rate, config.epochs, config.adapter.r) == (1e-3, 2.0, 4)
    for changes in ({"optim.rate": 1}, {"nothing": 1}, {"a.b": 1}, {"epochs": -1}, {"epochs.x": 1}):
        with pytest.raises(ConfigError):
            changed(TrainConfig(), changes)


# -- from a failed job to a copy that works


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.save_model(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture
def studio(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    """A studio with a model and a dataset, without a scheduler."""
    monkeypatch.setattr("studio.job_desk.ensure_scheduler", lambda workspace: False)
    with LiveStudio(tmp_path) as live:
        toy.register_model(live, model_folder)
        toy.register_dataset(live)
        opened = Studio(tmp_path)
        yield opened
        opened.close()


def failed(studio: Studio, kind: str, config: TrainConfig) -> str:
    """A training job that has failed in one way."""
    job = studio.train(studio.models()[0].id, studio.datasets()[0].id, config, name="run")
    claimed = studio._jobs.claim("cpu", ["train"])
    assert claimed is not None and claimed.id == job.id
    attempt = Attempt(studio._database, job.id, claimed.attempt)
    attempt.fail(Failure(kind, "It failed.", "Mend it.", "the line"))
    return job.id


def test_a_remedy_makes_a_copy_with_the_change_and_what_waits_follows(studio: Studio) -> None:
    config = TrainConfig(optim=OptimConfig(learning_rate=5.0), adapter=AdapterConfig(r=2))
    job_id = failed(studio, failures.DIVERGED, config)
    merge = studio.board.merge_after(job_id)
    assert studio.job(job_id).failure == {"kind": "diverged", "evidence": "the line"}
    assert [item.name for item in studio.board.remedies(job_id)] == ["rate", AGAIN]
    copy = studio.board.retry(job_id)
    made = from_dict(TrainConfig, copy.spec["train"])
    assert made == changed(config, {"optim.learning_rate": 0.5}) and copy.state == "queued"
    assert studio.job(merge.id).after_id == copy.id and studio.job(merge.id).spec["adapter_id"] == copy.id
    assert studio.job(job_id).state == "failed"
    assert studio.board.retry(job_id, AGAIN).id == job_id and studio.job(job_id).state == "queued"
    with pytest.raises(JobError, match="no remedy"):
        studio.board.retry(job_id)


def test_less_memory_on_a_real_plan(studio: Studio) -> None:
    job_id = failed(studio, failures.HOST_MEMORY, TrainConfig(micro_batch_size=8))
    offered = studio.board.remedies(job_id)
    assert offered[0].name == "memory:micro_batch_size" and len(offered) >= 2
    copy = studio.board.retry(job_id, offered[0].name)
    assert copy.spec["train"]["micro_batch_size"] < 8


def test_while_nothing_fits_it_is_looked_at_again(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = failed(studio, failures.GPU_MEMORY, TrainConfig(micro_batch_size=8))
    own = studio.plan
    monkeypatch.setattr(studio, "plan", lambda *given: replace(own(*given), memory_free_bytes=0))  # its worker has it
    assert [item.name for item in studio.board.remedies(job_id)] == [AGAIN]
    monkeypatch.undo()
    assert studio.board.remedies(job_id)[0].name == "memory:micro_batch_size"


def test_a_lost_gpu_is_replaced_by_the_processor_only_by_choice(studio: Studio) -> None:
    job_id = failed(studio, failures.GPU_LOST, TrainConfig())
    copy = studio.board.retry(job_id, "cpu")
    assert copy.spec["device"] == "cpu"
    assert studio.board.duplicate(copy.id).spec["device"] == "cpu"
    assert "device" not in studio.board.duplicate(job_id, {"epochs": 1}).spec


def test_copies_of_jobs_that_are_no_training(studio: Studio) -> None:
    job = studio.submit("selftest", "count", {"steps": 3})
    copy = studio.board.duplicate(job.id, name="again")
    assert (copy.name, copy.spec, copy.kind) == ("again", {"steps": 3}, "selftest")
    with pytest.raises(ConfigError, match="no training job"):
        studio.board.duplicate(job.id, {"epochs": 2})
    with pytest.raises(JobError, match="Nothing can wait"):
        studio.board.merge_after(job.id)


def test_without_the_model_the_same_job_can_still_be_tried_again(studio: Studio) -> None:
    job_id = failed(studio, failures.HOST_MEMORY, TrainConfig())
    spec = dict(studio._jobs.get(job_id).spec)
    with studio._database.writing() as session:
        from studio.tables import JobRow

        session.get_one(JobRow, job_id).spec = {**spec, "model_id": "gone"}
    assert [item.name for item in studio.board.remedies(job_id)] == [AGAIN]


def test_configs_survive_the_round_trip_of_a_copy(studio: Studio) -> None:
    config = TrainConfig(adapter=AdapterConfig(target_modules=("q_proj", "v_proj"), rank_pattern={"q_proj": 2}))
    assert from_dict(TrainConfig, to_dict(changed(config, {}))) == config
