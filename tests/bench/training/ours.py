"""Our side: the Trainer's own step, on rows that are tokens already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.adapters import inject
from core.config import AdapterConfig, DataConfig, OptimConfig, TrainConfig
from core.data.tokenized import TokenizedExample
from core.examples import Examples
from core.tasks.completion import Completion
from core.train import StepMetrics, Trainer
from tests.bench.training.adapter import fill
from tests.bench.training.rows import Row
from tests.bench.training.shapes import PROJECTIONS, random_model


class NoTokenizer:
    """All that a Trainer asks of a tokenizer when its rows are tokens already."""

    pad_token_id = 0


class ReadyTokens(Completion):
    """Completion on rows that need no tokenizer."""

    def __init__(self, rows: list[Row]) -> None:
        super().__init__()
        self.rows = rows

    def prepare(
        self, records: Any, tokenizer: Any, config: Any, context: int, progress: Any, virtual_tokens: int
    ) -> Examples:
        """The rows as examples, all for training, behind the method's virtual tokens."""
        before = tuple(range(-1, -1 - virtual_tokens, -1))
        examples = tuple(
            TokenizedExample(row.ids, (False,) * row.prompt + (True,) * (len(row.ids) - row.prompt), index + 1)
            for index, row in enumerate(self.rows)
        )
        longest = max(len(row.ids) for row in self.rows) + virtual_tokens
        return Examples(tuple(example.after(before) for example in examples), (), longest, ())


class OurSide:
    """The model with our adapter; every set of rows gets a trainer of its own."""

    def __init__(self, shape: str, device: str, r: int, variant: str, scratch: Path) -> None:
        self.config = AdapterConfig(
            method="dora" if "dora" in variant else "lora", r=r, lora_alpha=2.0 * r, target_modules=PROJECTIONS
        )
        self.model = random_model(shape, device)
        self.model.requires_grad_(False)
        if "nf4" in variant:
            from core.quantize.model import quantize_model

            quantize_model(self.model, "nf4", device)
            self.model.to("cpu").to(device)  # packed side by side, as a model that is loaded layer by layer lies there
        inject(self.model, self.config, seed=0)
        fill(self.model)
        self.is_deterministic = "deterministic" in variant
        self._running: Iterator[StepMetrics] = iter(())
        self.path = ""  # what the Trainer says it runs on

    def start(self, rows: list[Row], batch_size: int) -> None:
        """Train on these rows from now on."""
        self._running = self._trainer(rows, batch_size).steps()

    def step(self) -> int:
        """One optimizer step; returns its tokens, without padding."""
        return next(self._running).tokens

    def with_gradients(self, rows: list[Row], look: Callable[[], None]) -> None:
        """One step of the Trainer on one batch; `look` is called when its gradients are whole."""
        trainer = self._trainer(rows, len(rows))
        trainer.optimizer.register_step_pre_hook(lambda *unused: look())
        next(trainer.steps())

    def _trainer(self, rows: list[Row], batch_size: int) -> Trainer:
        config = TrainConfig(
            adapter=self.config, data=DataConfig(validation_share=0.0), epochs=1000.0,
            batch_size=batch_size, micro_batch_size=batch_size, eval_every=1_000_000,
            deterministic=self.is_deterministic,
            optim=OptimConfig(learning_rate=1e-4, max_grad_norm=0.0, schedule="constant", warmup_share=0.0),
        )  # fmt: skip
        tokenizer: Any = NoTokenizer()
        trainer = Trainer(self.model, tokenizer, [], config, task=ReadyTokens(rows))
        self.path = f"{trainer.path}; attention: {trainer.micro_batches.attention or 'padded rows'}"
        return trainer
