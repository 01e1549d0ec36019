"""One training run, and the search for a method's learning rate.

The rate is picked by the validation loss of seed 0 on a grid that is the same for every method: from the method's own
suggestion uphill until both neighbours are worse. The runs that count have other seeds and other rows.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from core.adapters import remove_adapter
from core.config import DataConfig, OptimConfig, TrainConfig
from core.errors import DivergedError
from core.export.peft import save_adapter
from core.methods import methods
from core.train import Trainer
from tests.bench.comparison.tasks import TASKS
from tests.bench.comparison.variants import VARIANTS

GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SEEDS = (1, 2, 3)
SEARCH_SEED = 0


class Bench:
    """The runs of one variant on one task; what is in its file already is not run again."""

    def __init__(self, task: str, variant: str, folder: Path, model: Path | None, device: str | None) -> None:
        self.task, self.name, self.variant = TASKS[task](model, device), variant, VARIANTS[variant]
        self.file = folder / f"{task}-{variant}.jsonl"
        self.done = [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def run_all(self, deadline: float = math.inf) -> None:
        """Find the learning rate, then train with every seed; stops after `deadline` (seconds since 1970)."""
        for rate, seed in self._wanted():
            if time.time() > deadline:
                return
            self._record(self._run(rate, seed))

    def _wanted(self) -> Iterator[tuple[float, int]]:
        """The runs that are still needed, each asked for once the ones before it are known."""
        while (rate := self._next_rate()) is not None:
            yield rate, SEARCH_SEED
        best = min(self._searched(), key=self._searched().__getitem__)
        for seed in SEEDS:
            if not any(run["seed"] == seed and run["learning_rate"] == best for run in self.done):
                yield best, seed

    def _searched(self) -> dict[float, float]:
        """Learning rate -> validation loss, of the runs of the search."""
        return {run["learning_rate"]: run["validation_loss"] for run in self.done if run["seed"] == SEARCH_SEED}

    def _next_rate(self) -> float | None:
        """The next point of the grid to try, None when the best one has two worse neighbours (or is at an end)."""
        seen = self._searched()
        if not seen:
            usual = methods.get(self.variant.method).learning_rate_factor * 1e-3
            return min(GRID, key=lambda rate: abs(math.log(rate / usual)))
        place = GRID.index(min(seen, key=seen.__getitem__))
        around = [GRID[next_to] for next_to in (place + 1, place - 1) if 0 <= next_to < len(GRID)]
        return next((rate for rate in around if rate not in seen), None)

    def _record(self, run: dict[str, Any]) -> None:
        self.done.append(run)
        with self.file.open("a") as file:
            file.write(json.dumps(run) + "\n")

    def config(self, rate: float, seed: int) -> TrainConfig:
        """Equal steps, batches and schedule for everyone."""
        steps = self.task.steps
        return TrainConfig(
            adapter=self.variant.adapter(self.task.modules_to_save),
            optim=OptimConfig(learning_rate=rate, warmup_share=0.06),
            data=DataConfig(validation_share=0.1, max_length=256),
            max_steps=steps, epochs=1000, batch_size=self.task.batch_size, micro_batch_size=self.task.batch_size,
            eval_every=steps, patience=0, seed=seed,
        )  # fmt: skip

    def _run(self, rate: float, seed: int) -> dict[str, Any]:
        started = time.perf_counter()
        model, tokenizer = self.task.load(self.variant.quantization, seed)
        trainer = Trainer(model, tokenizer, self.task.records, self.config(rate, seed), task=self.task.task())
        run: dict[str, Any] = {
            "task": self.task.name, "variant": self.name, "learning_rate": rate, "seed": seed,
            "parameters": sum(parameter.numel() for parameter in trainer.parameters),
        }  # fmt: skip
        try:
            last = list(trainer.steps())[-1]
            run |= {"validation_loss": last.eval_loss, "train_loss": last.loss}
        except DivergedError:
            return run | {"validation_loss": math.inf, "seconds": time.perf_counter() - started}
        if seed != SEARCH_SEED:
            run |= self.task.score(model, tokenizer)
            with tempfile.TemporaryDirectory() as scratch:
                save_adapter(model, scratch)
                run["bytes"] = (Path(scratch) / "adapter_model.safetensors").stat().st_size
        return run | {"seconds": time.perf_counter() - started}

    def cost(self, steps: int = 12) -> dict[str, Any]:
        """Seconds a step (median) and peak memory of one variant, with nothing beside it."""
        model, tokenizer = self.task.load(self.variant.quantization, 1)
        trainer = Trainer(model, tokenizer, self.task.records, self.config(1e-5, 1), task=self.task.task())
        device = next(model.parameters()).device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times: list[float] = []
        for metrics in trainer.steps():
            times.append(metrics.seconds)
            if len(times) == steps:
                break
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else _peak_rss()
        remove_adapter(model, "default")
        return {
            "task": self.task.name, "variant": self.name, "step_seconds": sorted(times[2:])[len(times[2:]) // 2],
            "peak_memory_bytes": memory, "device": _device_name(device),
        }  # fmt: skip


def _peak_rss() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
