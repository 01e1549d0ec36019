"""One side of the CPU bench: our Trainer, or transformers' Trainer on peft's model, one step at a time."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.record import ROOT
from tests.bench.sides import Answer, serve
from tests.bench.training.adapter import fill, save_gradients
from tests.bench.training.rows import Row, padded

TICKETS = ROOT / "assets" / "datasets" / "support_tickets.jsonl"
ROWS_A_STEP, RANK, SEED = 8, 16, 3


def main() -> None:
    """Answer requests until there are no more."""
    serve(lambda settings: _Worker(**settings).answer)


class _Worker:
    """Holds a model ready, then takes a step at every request."""

    def __init__(self, side: str, model: str, dtype: str, scratch: str, steps: int) -> None:
        self.rows = ticket_rows(Path(model))
        self.file = Path(scratch) / f"{side}-{dtype}.safetensors"
        self.kind: Any = _Ours if side == "ours" else _Peft
        self.side = self.kind(model, dtype, self.rows, steps)
        self.running: Iterator[int] | None = None

    def answer(self, do: str) -> Answer:
        """gradients, step, memory or products."""
        if do == "gradients":
            batch = sorted(self.rows[:ROWS_A_STEP], key=lambda row: -len(row.ids))
            return dict(self.side.gradients(batch, self.file))
        if do == "memory":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            return {"peak_gib": peak, "path": self.side.path}
        if do == "products":
            return {"seconds": bare_products(self.side.model, *self.side.counted)}
        self.running = self.running or self.side.steps()
        start, cpu = time.perf_counter(), time.process_time()
        tokens = next(self.running)
        return {"tokens": tokens, "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}


def bare_products(model: Any, positions: int, trained: int) -> float:
    """Seconds of the products with frozen weights alone, forward and backward, that a step cannot do without.

    `positions` pass through every layer, `trained` of them through the output layer as well.
    """
    import torch

    from core.ops.precision import compute_dtype
    from core.ops.product import product

    adapted = [
        each.base_layer for each in model.modules() if isinstance(getattr(each, "base_layer", None), torch.nn.Linear)
    ]
    sizes = [(layer.weight, positions) for layer in adapted]
    sizes.append((model.get_output_embeddings().weight, trained))
    dtype = compute_dtype(sizes[0][0])
    sizes = [(weight.to(dtype), rows) for weight, rows in sizes]
    shapes = {(rows, size) for weight, rows in sizes for size in weight.shape}
    inputs = {shape: torch.randn(shape, dtype=dtype) for shape in shapes}
    best = float("inf")
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            for weight, rows in sizes:
                product(inputs[rows, weight.shape[1]], weight)
                product(inputs[rows, weight.shape[0]], weight.T)
            best = min(best, time.perf_counter() - start)
    return best


def ticket_rows(model: Path) -> list[Row]:
    """The ticket data as tokens, by our reader and the model's template."""
    from core.data.dataset import load_dataset
    from core.data.template import tokenize_all
    from core.models import load_tokenizer

    examples = tokenize_all(load_dataset(TICKETS).records, load_tokenizer(model))
    return [Row(example.input_ids, example.loss_mask.index(True)) for example in examples]


class _Ours:
    def __init__(self, model: str, dtype: str, rows: list[Row], steps: int) -> None:
        from core.adapters import inject
        from core.config import AdapterConfig
        from core.models import load_model

        self.rows, self.path = rows, ""
        self.positions: list[int] = []
        self.trained: list[int] = []
        self.model, self.tokenizer = load_model(model, dtype=dtype, device="cpu")
        self.adapter = AdapterConfig(r=RANK, lora_alpha=2.0 * RANK)
        inject(self.model, self.adapter, seed=0)
        fill(self.model)

    def gradients(self, batch: list[Row], file: Path) -> Answer:
        found: list[Answer] = []
        trainer = self._trainer(batch)
        layers = self.model.config.num_hidden_layers
        trainer.optimizer.register_step_pre_hook(lambda *unused: found.append(save_gradients(self.model, layers, file)))
        next(trainer.steps())
        fill(self.model)
        return found[0]

    def steps(self) -> Iterator[int]:
        trainer = self._trainer(self.rows)
        self.path = trainer.path
        for metrics in trainer.steps():
            self.positions.append(metrics.positions)
            self.trained.append(metrics.trained_tokens)
            yield metrics.tokens

    @property
    def counted(self) -> tuple[int, int]:
        """What a step computed on average: positions, and trained ones."""
        steps = len(self.positions)
        return sum(self.positions) // steps, sum(self.trained) // steps

    def _trainer(self, rows: list[Row]) -> Any:
        from core.config import DataConfig, OptimConfig, TrainConfig
        from core.train import Trainer
        from tests.bench.training.ours import ReadyTokens

        config = TrainConfig(
            adapter=self.adapter, data=DataConfig(validation_share=0.0), batch_size=ROWS_A_STEP, epochs=100.0,
            eval_every=1_000_000, optim=OptimConfig(learning_rate=1e-4, max_grad_norm=0.0), seed=SEED,
        )  # fmt: skip
        return Trainer(self.model, self.tokenizer, [], config, task=ReadyTokens(rows))


class _Peft:
    def __init__(self, model: str, dtype: str, rows: list[Row], steps: int) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        self.rows, self.count, self.path = rows, steps, ""
        self.is_bf16 = dtype == "bfloat16"
        base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model: Any = get_peft_model(base, config)
        fill(self.model)

    def gradients(self, batch: list[Row], file: Path) -> Answer:
        import torch

        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.is_bf16):
            self.model(**padded(batch, "cpu")).loss.backward()
        found = save_gradients(self.model, self.model.config.num_hidden_layers, file)
        self.model.zero_grad()
        return found

    def steps(self) -> Iterator[int]:
        """Every step of `Trainer.train`, which runs in a thread of its own and waits for its turns."""
        import queue
        import threading

        from transformers import Trainer, TrainerCallback, TrainingArguments

        turns: queue.Queue[bool] = queue.Queue()
        done: queue.Queue[int | BaseException] = queue.Queue()
        seen: list[int] = []

        def collate(rows: list[Row]) -> dict[str, Any]:
            seen.append(sum(len(row.ids) for row in rows))
            return padded(rows, "cpu")

        class Turns(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *unused: Any, **more: Any) -> None:
                done.put(seen[len(ended)])
                ended.append(True)
                turns.get()

        ended: list[bool] = []
        arguments = TrainingArguments(
            tempfile.mkdtemp(), per_device_train_batch_size=ROWS_A_STEP, max_steps=self.count + 1,
            report_to=[], save_strategy="no", logging_strategy="no", use_cpu=True, disable_tqdm=True, max_grad_norm=0.0,
            learning_rate=1e-4, bf16=self.is_bf16, remove_unused_columns=False, seed=SEED,
        )  # fmt: skip
        trainer = Trainer(self.model, arguments, train_dataset=self.rows, data_collator=collate, callbacks=[Turns()])

        def train() -> None:
            try:
                turns.get()
                trainer.train()
            except BaseException as error:  # noqa: BLE001 - it is raised where the step was asked for
                done.put(error)

        threading.Thread(target=train, daemon=True).start()
        while True:
            turns.put(True)
            ending = done.get()
            if isinstance(ending, BaseException):
                raise ending
            yield ending


if __name__ == "__main__":
    main()
