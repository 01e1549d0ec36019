"""Training an adapter: from a dataset and a model of the library to an adapter of the library, through checkpoints.

Spec: {"model_id": "...", "dataset_id": "...", "train": TrainConfig as a dict}. Result: {"adapter_id": "..."}.
Whatever kills the process, the next attempt goes on from the newest whole checkpoint and ends with the same bytes.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.checkpoint import checkpoint_bytes, damaged_since, latest_checkpoint, load_checkpoint, prune, save_checkpoint
from core.config import TrainConfig, from_dict
from core.data.chat_template import written_on
from core.data.token_cache import TokenCache
from core.durable import check_free, file_sha256, verify_folder
from core.errors import CheckpointError, MissingModelError
from core.export.method_file import METHOD_NAME
from core.export.peft_config import CONFIG_NAME, WEIGHTS_NAME
from core.export.task_file import TASK_NAME
from core.models import inspect_model
from core.tasks.choice import choose_task
from studio.context import CANCEL, RUN, STOP, JobContext, Leave
from studio.dataset_files import StoredDataset, open_dataset
from studio.files import move_folder, size_bytes
from studio.held_out import HeldOut
from studio.kinds.kind import Outcome, job_kind
from studio.tables import AdapterRow, ModelRow

if TYPE_CHECKING:
    from core.data.token_parts import Progress
    from core.step_metrics import StepMetrics
    from core.train import Trainer

logger = logging.getLogger(__name__)
NAMED_ROWS = 20  # of those left out, in the log


@job_kind("train")
def run(context: JobContext) -> Outcome:
    """Prepare, go on from the newest checkpoint, train, and file the best adapter; templates print the job's day."""
    with written_on(datetime.fromtimestamp(context.job.created_at)):  # else a run resumed tomorrow had other tokens
        return _run(context)


def _run(context: JobContext) -> Outcome:
    config = from_dict(TrainConfig, context.job.spec["train"])
    model = context.library.model(context.job.spec["model_id"])
    folder = context.workspace.checkpoints_folder(context.job.id)
    resumed_from = latest_checkpoint(folder)
    if damaged := damaged_since(folder, resumed_from):
        logger.warning("%s damaged: the newest whole checkpoint is taken instead", ", ".join(damaged))
    context.can_finish = resumed_from is not None
    dataset = _read_dataset(context)
    trainer = _prepare(context, config, model, dataset)
    if resumed_from is not None:
        context.say("Going on from the last checkpoint")
        load_checkpoint(trainer, resumed_from)
    check_free(context.folder, checkpoint_bytes(trainer, folder))  # now, not after an hour, at the first save
    held_out = HeldOut(context, trainer, dataset.records)
    held_out.start()
    _train(context, trainer, folder, held_out)
    row = _file(context, trainer, model, folder)
    return Outcome({"adapter_id": row.id, "task": trainer.task.name, **held_out.finish(folder, row.step)}, (row,))


def _prepare(context: JobContext, config: TrainConfig, model: ModelRow, dataset: StoredDataset) -> Trainer:
    """Load the model for its task, and tokenise; each can be left when the user or the studio asks for it."""
    from core.tasks.made import make_task
    from core.train import Trainer

    context.say(f"Loading {model.name}")
    folder = context.library.model_folder(model)
    if not folder.is_dir():
        fix = "Put it back where it was, or add the model again."
        raise MissingModelError(f"The folder of {model.name} is gone.", fix)
    name = choose_task(config.task, inspect_model(folder).family, dataset.format)
    task = make_task(name, dataset.records, config)
    loaded, tokenizer = context.wait_for(lambda: task.load(folder, config))
    context.say(f"Tokenising {len(dataset):,} rows")  # `JobView.counts_rows` knows it
    config = _with_new_modules(config, task.new_modules(loaded))
    task.cache = TokenCache(context.workspace.tokens)
    with _counting_rows(context) as progress:
        trainer = Trainer(loaded, tokenizer, dataset.records, config, progress=progress, task=task)
    logger.info("%s", trainer.micro_batches.describe())
    logger.info("%s", trainer.path)
    _log_left_out(trainer.examples.left_out, trainer.examples.max_length)
    return trainer


@contextmanager
def _counting_rows(context: JobContext) -> Iterator[Progress]:
    """Give a function that shows the rows done as the job's bar; afterwards the bar shows steps again, as before.

    It raises Leave when the job has to give way; what is tokenised by then stays in the cache.
    """
    began, started = context.attempt.job(), time.monotonic()
    at_once: int | None = None  # rows that were there already, from an earlier run or attempt

    def progress(done: int, total: int) -> None:
        nonlocal at_once
        at_once = done if at_once is None else at_once
        pace_s = (time.monotonic() - started) / (done - at_once) if done > at_once else None
        context.record(done, {}, total_steps=total, eta_s=pace_s and pace_s * (total - done))
        context.glance()

    try:
        yield progress
    finally:
        context.say("Preparing the first step", step=began.step, total_steps=began.total_steps, eta_s=None)


def _log_left_out(rows: tuple[int, ...], max_length: int) -> None:
    if rows:
        named = ", ".join(map(str, rows[:NAMED_ROWS])) + (", ..." if len(rows) > NAMED_ROWS else "")
        logger.warning("%d rows are left out, their prompts exceed %d tokens: %s", len(rows), max_length, named)


def _read_dataset(context: JobContext) -> StoredDataset:
    row = context.library.dataset(context.job.spec["dataset_id"])
    context.say(f"Reading {row.rows:,} rows of {row.name}")
    return open_dataset(context.workspace.dataset_folder(row.id), row, verify=True)


def _with_new_modules(config: TrainConfig, names: tuple[str, ...]) -> TrainConfig:
    """The config with what the task added to the model, such as a classifier's head, among what trains whole."""
    saved = tuple(dict.fromkeys((*config.adapter.modules_to_save, *names)))
    return replace(config, adapter=replace(config.adapter, modules_to_save=saved))


def _train(context: JobContext, trainer: Trainer, folder: Path, held_out: HeldOut) -> None:
    """Run the steps that are left; returns at the end, or when the user wants what there is."""
    first, started = trainer.step, time.monotonic()
    context.say("Training", step=first, total_steps=trainer.total_steps)
    if first and context.request() == STOP:
        return  # stopped while it waited: the checkpoint is what there is
    for metrics in trainer.steps():
        context.can_finish = True  # from now on a stop has something to keep, also while answers are scored
        pace = (time.monotonic() - started) / (metrics.step - first)  # of this attempt alone, measuring and saving too
        context.record(metrics.step, _curves(metrics), **_columns(metrics, trainer, pace))
        if metrics.eval_loss is not None:
            held_out.measured(metrics.step, metrics.eval_loss)
            logger.info("step %d: loss %.4f, eval loss %.4f", metrics.step, metrics.loss, metrics.eval_loss)
        wish = context.request()
        if wish == CANCEL:
            raise Leave(wish)
        if metrics.save or wish != RUN:
            _save(context, trainer, folder)
        if wish == STOP:
            return
        if wish != RUN:
            raise Leave(wish)


def _curves(metrics: StepMetrics) -> dict[str, float]:
    values = {"loss": metrics.loss, "learning_rate": metrics.learning_rate, "grad_norm": metrics.grad_norm}
    values["tokens_per_second"] = metrics.tokens / max(metrics.seconds, 1e-9)
    return values if metrics.eval_loss is None else values | {"eval_loss": metrics.eval_loss}


def _columns(metrics: StepMetrics, trainer: Trainer, pace_s: float) -> dict[str, Any]:
    columns = {
        "total_steps": metrics.total_steps,
        "loss": metrics.loss,
        "tokens_per_second": metrics.tokens / max(metrics.seconds, 1e-9),
        "eta_s": pace_s * (metrics.total_steps - metrics.step),
    }
    return columns if metrics.eval_loss is None else columns | {"eval_loss": metrics.eval_loss, **_best(trainer)}


def _best(trainer: Trainer) -> dict[str, Any]:
    best = trainer.best_eval_loss
    return {"best_step": trainer.best_step or None, "best_eval_loss": best if math.isfinite(best) else None}


def _save(context: JobContext, trainer: Trainer, folder: Path) -> None:
    context.flush()  # first, so that no curve ever lacks a step that the checkpoint has behind it
    save_checkpoint(trainer, folder)
    context.saved(trainer.step, **_best(trainer))
    prune(folder, trainer.config.keep_checkpoints, trainer.best_step)


def _file(context: JobContext, trainer: Trainer, model: ModelRow, folder: Path) -> AdapterRow:
    """Copy the best checkpoint's adapter into the library and return its row. It has the id of its job."""
    context.say("Filing the adapter")
    checkpoint = _best_checkpoint(folder, trainer.best_step)
    state = json.loads((checkpoint / "trainer.json").read_bytes())
    build, target = context.scratch / "adapter", context.workspace.adapter_folder(context.job.id)
    _copy_adapter(checkpoint, build, model)
    context.workspace.discard(target)  # of an attempt that died between here and its last line
    move_folder(build, target)
    adapter = trainer.config.adapter
    return AdapterRow(
        id=context.job.id,
        name=context.job.name,
        model_id=model.id,
        job_id=context.job.id,
        method=adapter.method,
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        parameters=sum(parameter.numel() for parameter in trainer.parameters),
        size_bytes=size_bytes(target),
        sha256=file_sha256(target / WEIGHTS_NAME),
        step=state["step"],
        eval_loss=state["eval_loss"],
    )


def _best_checkpoint(folder: Path, best_step: int) -> Path:
    """The checkpoint with the lowest validation loss, or else the newest whole one."""
    best = folder / f"step-{best_step:06d}"
    try:
        if best_step:
            verify_folder(best)
            return best
    except CheckpointError as error:
        logger.warning("%s The newest whole checkpoint is taken instead.", error.what)
    newest = latest_checkpoint(folder)
    if newest is None:
        raise CheckpointError("No checkpoint of this run is left.", "Start a new job.")
    return newest


def _copy_adapter(checkpoint: Path, build: Path, model: ModelRow) -> None:
    """Copy the PEFT folder out of a checkpoint; the base is named by its origin, not by a path of this machine."""
    shutil.rmtree(build, ignore_errors=True)
    build.mkdir(parents=True)
    shutil.copyfile(checkpoint / WEIGHTS_NAME, build / WEIGHTS_NAME)
    for name in (METHOD_NAME, TASK_NAME):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, build / name)
    config = json.loads((checkpoint / CONFIG_NAME).read_text(encoding="utf-8"))
    hub_id = model.source.removeprefix("hub: ")
    config["base_model_name_or_path"] = hub_id if hub_id != model.source else model.name
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (build / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
