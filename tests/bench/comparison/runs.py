"""One training run, and what a step costs, in a process that keeps its model for the next run."""

from __future__ import annotations

import gc
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from core.adapters import remove_adapter
from core.config import DataConfig, OptimConfig, TrainConfig
from core.errors import DivergedError
from core.export.peft import save_adapter
from core.train import Trainer
from tests.bench.comparison.search import SEARCH_SEED, Run
from tests.bench.comparison.tasks import TASKS
from tests.bench.comparison.variants import VARIANTS, Variant

ADAPTER = "default"


class Bench:
    """Runs of one task; every run takes its adapter off again, which leaves the model as it was."""

    def __init__(self, task: str, model: Path | None = None, device: str | None = None) -> None:
        self.task = TASKS[task](model, device)

    def run(self, name: str, rate: float, seed: int) -> Run:
        """Train a variant, and measure it; a run of the search measures its validation loss alone."""
        started = time.perf_counter()
        about: Run = {"task": self.task.name, "variant": name, "learning_rate": rate, "seed": seed}
        with self._trainer(VARIANTS[name], rate, seed) as trainer:
            try:
                last = list(trainer.steps())[-1]
            except DivergedError:
                return about | {"validation_loss": math.inf, "seconds": time.perf_counter() - started}
            about |= {"validation_loss": last.eval_loss, "train_loss": last.loss}
            about["parameters"] = sum(parameter.numel() for parameter in trainer.parameters)  # that still train
            if seed != SEARCH_SEED:
                about |= self.task.score(trainer.model, trainer.tokenizer) | {"bytes": _saved_bytes(trainer.model)}
        return about | {"seconds": round(time.perf_counter() - started, 1)}

    def cost(self, name: str, steps: int = 14) -> Run:
        """Seconds a step (median) and peak memory of a variant; honest only with nothing beside it."""
        with self._trainer(VARIANTS[name], 1e-5, 1) as trainer:
            device = next(trainer.model.parameters()).device
            _reset_peak(device)
            times = [metrics.seconds for metrics in islice(trainer.steps(), steps)][min(4, steps // 2) :]
            return {
                "task": self.task.name, "variant": name, "step_seconds": statistics.median(times),
                "peak_memory_bytes": _peak(device), "device": _device_name(device),
            }  # fmt: skip

    def config(self, variant: Variant, rate: float, seed: int) -> TrainConfig:
        """Equal steps, batches and schedule for everyone, on the path that every method runs on."""
        steps = self.task.steps
        return TrainConfig(
            adapter=variant.adapter(self.task.modules_to_save),
            optim=OptimConfig(learning_rate=rate, warmup_share=0.06),
            data=DataConfig(validation_share=0.1, max_length=256),
            max_steps=steps, epochs=1000, batch_size=self.task.batch_size, micro_batch_size=self.task.batch_size,
            eval_every=steps, patience=0, seed=seed, packing=False, fast_path=False,
        )  # fmt: skip

    @contextmanager
    def _trainer(self, variant: Variant, rate: float, seed: int) -> Iterator[Trainer]:
        model, tokenizer = self.task.load(variant.quantization, seed)
        config = self.config(variant, rate, seed)
        trainer = Trainer(model, tokenizer, self.task.records, config, ADAPTER, task=self.task.task())
        try:
            yield trainer
        finally:
            remove_adapter(model, ADAPTER)


def _saved_bytes(model: Any) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        save_adapter(model, scratch)
        return sum(path.stat().st_size for path in Path(scratch).glob("*.safetensors"))


def _reset_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(device: torch.device) -> int:
    """Bytes at the most: of the GPU since the reset, or of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, 1 thread"
