"""What a training run will take, before it starts: its steps, time, memory and disk, and what stands against it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from core.config import TrainConfig
from core.errors import ConfigError
from core.family import CAUSAL
from core.memory import estimate_memory
from core.methods import methods
from core.models import ModelInfo
from core.schedule import StepPlan, plan_steps
from core.scoring.translation import has_sacrebleu
from core.tasks.choice import COMPLETION, TASKS, TRANSLATION, TaskInfo, check_labels, choose_task
from studio.adapter_checks import adapter_checks
from studio.views import Check, DeviceView, PlanView

CPU_EFFICIENCY = 0.55  # of the measured matrix rate that a training step reaches
CHECKPOINTS_ON_DISK = 4  # two kept, the best, and one being written
FEW_ROWS, FEW_CUT, HIGH_LEARNING_RATE, HIGH_ALPHA_RATIO, MANY_EPOCHS = 50, 0.02, 1e-2, 8.0, 10


@dataclass(frozen=True)
class Facts:
    """What a plan is made from: the model, the rows' lengths in tokens, and the state of this machine."""

    info: ModelInfo
    rows: int
    duplicate_rows: int
    lengths: Sequence[int]  # of the texts of a sample of the rows; a preference pair has two
    device: DeviceView
    disk_free_bytes: int
    tokens_per_second: float | None  # measured in an earlier run of this model here
    format: str = ""  # of the dataset


def make_plan(facts: Facts, config: TrainConfig) -> PlanView:
    """Work out everything the plan card shows."""
    method = methods.get(config.adapter.method)
    virtual = method.virtual_tokens(config.adapter)
    longest = _max_length(facts, config, virtual)
    validation = min(config.data.validation_max_rows, round(facts.rows * config.data.validation_share))
    steps = plan_steps(facts.rows - validation, config, validation, longest)
    lengths = [min(length + virtual, longest) for length in facts.lengths] or [0]
    task = _task(facts, config)
    tokens_per_epoch = round(sum(lengths) / len(lengths) * steps.rows * task.forwards)
    trainable = method.trainable_parameters(facts.info, config.adapter)
    rows_at_once, on_gpu = steps.micro_batch_size * task.forwards, facts.device.kind == "cuda"
    memory = estimate_memory(facts.info, config, rows_at_once, longest, _dtype(facts, config), on_gpu)
    total = sum(memory.values())
    disk = CHECKPOINTS_ON_DISK * trainable * 4 * 3  # float32: the adapter and two moments of AdamW
    free = facts.device.memory_total_bytes - facts.device.memory_used_bytes
    checks = (
        *_task_checks(facts, config),
        *adapter_checks(facts.info, config, steps.total_steps),
        *_data_checks(facts, config, longest, virtual),
        *_setting_checks(facts.info, config, task),
        *_room_checks(total, free, disk, facts.disk_free_bytes),
    )
    return PlanView(
        checks=checks,
        rows=steps.rows,
        validation_rows=validation,
        steps=steps.total_steps,
        tokens_per_epoch=tokens_per_epoch,
        trainable_parameters=trainable,
        trainable_by_target=method.parameters_by_target(facts.info, config.adapter)
        if "target_modules" in method.uses
        else {},
        total_parameters=facts.info.parameters,
        seconds=_seconds(facts, steps, tokens_per_epoch, trainable),
        memory=memory,
        memory_total_bytes=total,
        memory_free_bytes=free,
        disk_bytes=disk,
        device=facts.device.name,
        micro_batch_size=steps.micro_batch_size,
        max_length=longest,
        learning_rate=_learning_rate(facts.info, config, task),
    )


def _max_length(facts: Facts, config: TrainConfig, virtual_tokens: int) -> int:
    """The longest example, with the virtual tokens before it."""
    if config.data.max_length:
        return config.data.max_length + virtual_tokens
    ordered = sorted(facts.lengths) or [0]
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    rounded = max(64, -(-p99 // 64) * 64) + virtual_tokens
    return min(rounded, facts.info.context_length or rounded)


def _seconds(facts: Facts, steps: StepPlan, tokens_per_epoch: int, trainable: int) -> float | None:
    tokens = tokens_per_epoch * steps.total_steps / steps.steps_per_epoch
    if facts.tokens_per_second:
        return tokens / facts.tokens_per_second
    if facts.device.kind != "cpu":
        return None
    flops = 4 * facts.info.parameters + 2 * trainable  # forward and dX through everything, dW of what trains
    return tokens * flops / (cpu_flops() * CPU_EFFICIENCY)


@cache
def cpu_flops() -> float:
    """This machine's float32 matrix rate in FLOP/s, measured once in about 50 ms."""
    import numpy as np

    size = 768
    matrix = np.ones((size, size), dtype=np.float32)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        _ = matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _task(facts: Facts, config: TrainConfig) -> TaskInfo:
    """The task, or the usual one where model and dataset do not fit together, which a check tells."""
    try:
        return TASKS[choose_task(config.task, facts.info.family, facts.format)]
    except ConfigError:
        return TASKS[COMPLETION]


def _task_checks(facts: Facts, config: TrainConfig) -> Iterator[Check]:
    """What is learned, or why model and dataset do not fit together."""
    try:
        name = choose_task(config.task, facts.info.family, facts.format)
        check_labels(name, config.data.multi_label)
        yield Check("ok", TASKS[name].sentence)
        if name == TRANSLATION and not has_sacrebleu():
            yield Check(
                "warning", "BLEU and chrF will not be measured.", "Install them: pip install 'lora-studio[eval]'."
            )
    except ConfigError as error:
        yield Check("error", error.what, error.fix)


def _data_checks(facts: Facts, config: TrainConfig, longest: int, virtual_tokens: int) -> Iterator[Check]:
    if facts.rows == 0:
        yield Check("error", "The dataset has no usable row.", "Pick another one.")
    elif facts.rows < FEW_ROWS:
        yield Check("warning", f"Only {facts.rows} rows: the model may learn them by heart.", "Add more rows.")
    if facts.duplicate_rows > facts.rows * 0.2:
        yield Check("warning", f"{facts.duplicate_rows} rows are duplicates.", "Remove them, or train fewer epochs.")
    context = facts.info.context_length
    if context and longest > context:
        yield Check(
            "error", f"The longest example has {longest} tokens; the model reads {context}.", "Lower max_length."
        )
    cut = sum(length + virtual_tokens > longest for length in facts.lengths) / max(1, len(facts.lengths))
    if cut > FEW_CUT:
        yield Check("warning", f"About {cut:.1%} of the rows are cut at {longest} tokens.", "Raise max_length.")
    else:
        yield Check(
            "ok", f"Nearly every row fits into {longest} tokens." if cut else f"Every row fits into {longest} tokens."
        )
    if not facts.info.has_chat_template and facts.info.family == CAUSAL:
        yield Check(
            "warning", "The model has no chat template.", "A plain format is used; an instruct model chats better."
        )
    if config.data.validation_share == 0:
        yield Check("warning", "No rows are held out, so nothing tells when it only memorises.", "Hold out 5 %.")


def _dtype(facts: Facts, config: TrainConfig) -> str:
    """What "auto" will be: bfloat16 on a GPU, float32 elsewhere."""
    if config.dtype != "auto":
        return config.dtype
    return "bfloat16" if facts.device.kind == "cuda" else "float32"


def _learning_rate(info: ModelInfo, config: TrainConfig, task: TaskInfo) -> float:
    """The one that is set, or else the one that training will pick."""
    usual = methods.get(config.adapter.method).learning_rate(info.hidden_size, config.adapter)
    return config.optim.learning_rate or usual * task.rate_factor


def _setting_checks(info: ModelInfo, config: TrainConfig, task: TaskInfo) -> Iterator[Check]:
    if not config.optim.learning_rate:
        yield Check("ok", f"The learning rate will be {_learning_rate(info, config, task):g}.")
    if config.optim.learning_rate > HIGH_LEARNING_RATE:
        yield Check(
            "warning", f"A learning rate of {config.optim.learning_rate:g} often diverges.", "Try 2e-4 to 1e-3."
        )
    is_lora = methods.get(config.adapter.method).uses >= {"r", "lora_alpha"}
    if is_lora and config.adapter.lora_alpha / config.adapter.r > HIGH_ALPHA_RATIO:
        yield Check("warning", "Alpha is more than 8 times the rank.", "Alpha of twice the rank is usual.")
    if config.epochs > MANY_EPOCHS and not config.patience:
        yield Check("warning", f"{config.epochs:g} epochs without early stopping.", "Set patience to 3.")


def _room_checks(memory: int, memory_free: int, disk: int, disk_free: int) -> Iterator[Check]:
    if memory > memory_free:
        yield Check(
            "warning",
            f"It may need {_gib(memory)}, and {_gib(memory_free)} is free.",
            "Lower micro_batch_size or max_length, or pick a smaller model.",
        )
    else:
        yield Check("ok", f"It needs about {_gib(memory)} of the {_gib(memory_free)} that is free.")
    if disk > disk_free:
        yield Check(
            "error", f"Checkpoints need {_gib(disk)} of disk, and {_gib(disk_free)} is free.", "Free some space."
        )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
