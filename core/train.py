"""Training an adapter. Read `Trainer.steps` and `Trainer._train_step` first: they are the whole of it.

A Trainer computes and reports; it writes no file and prints nothing. Its caller saves a checkpoint whenever
`StepMetrics.save` is set, and after the last step takes the best one back:

    trainer = Trainer(model, tokenizer, records, TrainConfig())
    for metrics in trainer.steps():
        if metrics.save:
            save_checkpoint(trainer, folder)
    restore_best(trainer, folder)

The caller may stop at any step; a Trainer made the same way goes on from the checkpoint, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from core.adapters import adapter_names, inject, set_adapter, training_rule
from core.automatic import context_length, with_learning_rate
from core.collector import collection_put_off
from core.coming import Coming
from core.config import TrainConfig
from core.data.augmentation import augmentation
from core.data.batching import Sampler
from core.data.records import Record
from core.data.token_parts import Progress
from core.data.tokenized import lengths_of
from core.determinism import deterministic
from core.embedding_noise import embedding_noise
from core.errors import DivergedError
from core.gradients import Gradients, Summed
from core.loss import device_of
from core.methods import methods
from core.micro_batches import micro_batches_of
from core.mode import mode
from core.ops.fast_path import FastPath
from core.optim import AdamWInPieces, learning_rate, make_optimizer, optimizer_parameters, set_learning_rate
from core.pieces import pieces_of
from core.rng import RandomState
from core.schedule import plan_steps
from core.scoring.scores import Scores
from core.step_metrics import StepMetrics
from core.tasks.choice import TASKS
from core.tasks.made import task_of
from core.tasks.task import Task, measure_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_ROWS = 20  # rows listed in an error
CLIP_EPSILON = 1e-6  # torch's
SAMPLE_ROWS = 32  # a method looks at to measure something of its adapters


class HasRecords(Protocol):
    """A `core.data.dataset.Dataset`, or anything else that holds records."""

    @property
    def records(self) -> tuple[Record, ...]:
        """The usable rows."""
        ...


class Trainer:
    """Trains adapter `adapter` of a model on a dataset; injects it from `config.adapter` when the model lacks it.

    Public state: `step`, `total_steps`, `best_step` (0 when nothing was measured), `best_eval_loss`, `stopped_early`,
    `plan` and `examples` (every automatic setting, resolved), `micro_batches`. `task` is what the model is made for
    unless given.

    Raises DatasetError when there is nothing to train on.
    """

    @collection_put_off()
    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        dataset: HasRecords | Sequence[Record],
        config: TrainConfig,
        adapter: str = "default",
        progress: Progress | None = None,
        task: Task | None = None,
    ) -> None:
        records = dataset if isinstance(dataset, Sequence) else dataset.records
        self.task = task or task_of(config.task, model, records, config)
        config = with_learning_rate(config, model, self.task)
        self.model, self.tokenizer, self.config, self.adapter = model, tokenizer, config, adapter
        before = methods.get(config.adapter.method).virtual_tokens(config.adapter)
        self.examples = self.task.prepare(records, tokenizer, config, context_length(model), progress, before)
        self.plan = plan_steps(
            len(self.examples.train), config, len(self.examples.validation), self.examples.max_length
        )
        if adapter not in adapter_names(model):
            inject(model, config.adapter, adapter, seed=config.seed)
        set_adapter(model, adapter)
        self.total_steps = self.plan.total_steps
        self.rule = training_rule(model, adapter, self.total_steps)
        self.rule.sample = self._sample
        self.task.bind(model, config)
        self.fast_path = FastPath(model, config.fast_path)
        lengths = lengths_of(self.examples.train)
        ordered = lengths if config.data.curriculum != "none" else None
        self.sampler = Sampler(lengths, self.plan.batch_size, config.seed, ordered)
        self.micro_batches = micro_batches_of(model, self.task, self.examples, self.plan, config, self._pad_id)
        self.gradients = Gradients(model, self.task, self.examples.train, self.micro_batches, self._start_over)
        self.gradients.passing = self._passing
        self.gradients.prepared.augment = augmentation(config, tokenizer, self.task.name)
        self.renew_optimizer()
        self.random = RandomState.seeded(config.seed)
        self.step = 0
        self.best_step = 0
        self.best_eval_loss = math.inf
        self.last_eval_loss: float | None = None  # of the current step, when it was measured
        self.scores = Scores()  # of the validation rows, when they were measured last
        self.measurements_since_best = 0
        self.stopped_early = False
        self.notes: list[str] = []  # that the next step tells

    def renew_optimizer(self) -> None:
        """A fresh AdamW over what the adapter trains now: at the start, and when its rule changes what that is."""
        self.optimizer = make_optimizer(self.model, self.config.optim, self.adapter)
        self.parameters = optimizer_parameters(self.optimizer)
        self.gradients.graphs.train(self.parameters)

    @property
    def path(self) -> str:
        """Which layers of the model run on fused functions, and why others do not: a sentence for the log."""
        return self.fast_path.sentence

    @property
    def is_finished(self) -> bool:
        """True once no step is left."""
        return self.step >= self.total_steps or self.stopped_early

    def steps(self) -> Iterator[StepMetrics]:
        """Run the optimizer steps that are left, and tell about each once it is done."""
        self._try_the_device()
        try:
            yield from self._remaining_steps()
        finally:
            self.gradients.forget()

    def _remaining_steps(self) -> Iterator[StepMetrics]:
        ended = 0.0
        while not self.is_finished:
            started = ended if self.gradients.has_begun else time.perf_counter()
            with self._training():
                rate, outcome, summed = self._train_step()
                self._begin_next()
            grad_norm, *losses = self._checked(outcome, summed)  # waits for the device, once all else is done
            self.step += 1
            ended = time.perf_counter()
            eval_loss = self.evaluate() if self._is_due(self.plan.eval_every) else None
            is_best = self._remember(eval_loss)
            yield StepMetrics(
                step=self.step,
                total_steps=self.total_steps,
                epoch=self.step / self.plan.steps_per_epoch,
                loss=sum(losses) / summed.trained,
                learning_rate=rate,
                grad_norm=grad_norm,
                tokens=summed.tokens,
                positions=summed.positions,
                trained_tokens=summed.trained,
                seconds=ended - started,
                eval_loss=eval_loss,
                is_best=is_best,
                save=is_best or self.is_finished or self._is_due(self.plan.save_every),
                stopped_early=self.stopped_early,
                notes=self._taken_notes(summed.notes),
            )

    @contextmanager
    def _training(self) -> Iterator[None]:
        """What every step runs in: the run's own random numbers."""
        with deterministic(self.config.deterministic), self.random.drawing():
            yield

    @contextmanager
    def _passing(self) -> Iterator[None]:
        """What the model runs forward and backward in: dropout on, fused layers. A replayed graph has it recorded."""
        with (
            mode(self.model, training=True),
            self.fast_path.running(),
            embedding_noise(self.model, self.config.optim.neftune_alpha),
        ):
            yield

    def _try_the_device(self) -> None:
        """On a GPU, see that the longest batch fits, and whether steps can be replayed; told by the next step."""
        if device_of(self.model).type != "cuda" or self.is_finished:
            return
        count = sum(parameter.numel() for parameter in self.parameters)
        with self._training():
            self.notes.append(self.gradients.try_longest(self.plan.batch_size, count))
        refusal = "" if self.config.graphs else "graphs are off"
        refusal = "the run is deterministic" if self.config.deterministic else refusal
        self.gradients.enable_graphs(self.plan.batch_size, self.total_steps - self.step, refusal)
        self.notes.append(self.gradients.graphs.in_words())

    def evaluate(self) -> float | None:
        """Measure the validation loss, and `scores` with it, as the adapter is now; None without validation rows."""
        if not self.examples.validation:
            return None
        validation = self.examples.validation
        trained = sum(example.n_trained for example in validation)
        graphs = self.gradients.graphs.in_words()
        with self.fast_path.running():
            loss, self.scores = self.gradients.beside(
                lambda: measure_batches(self.task, self.model, self.micro_batches.batches(validation), trained)
            )
        if self.gradients.graphs.in_words() != graphs:
            self.notes.append(self.gradients.graphs.in_words())
        return loss

    def _train_step(self) -> tuple[float, Coming, Summed]:
        """One update from one batch of rows, of which the gradients are summed over micro-batches.

        Returns the learning rate, `_outcome`'s numbers, which are still on their way, and the gradients' sum.

        Every token weighs the same: the sum of all losses is divided by the number of trained tokens of the whole
        step, so that the result does not depend on how the rows fall into micro-batches.
        """
        summed = self.gradients.of(self.sampler.next_rows(), self.step)
        if self.step + 1 < self.total_steps:
            self.gradients.prepared.look_ahead(self.sampler.peek_rows(), self.step + 1)
        if (penalty := self.rule.regularizer()) is not None:
            torch.autograd.backward(penalty)
        grad_norm, outcome = self._outcome(summed)
        rate = learning_rate(self.step + 1, self.total_steps, self.config.optim)
        if not self.rule.is_plain:
            self._checked(outcome, summed)  # the rule of a method may read the gradient, or change weights by itself
        self._update(rate, grad_norm)
        return rate, outcome, summed

    def _begin_next(self) -> None:
        """Let the device go on while the host tells about this step, unless that is when it measures or saves."""
        done = self.step + 1
        measures = bool(self.examples.validation) and self._is_due(self.plan.eval_every, done)
        if self.rule.is_plain and not measures and not self._is_due(self.plan.save_every, done):
            self.gradients.begin(self.sampler.peek_rows(), done)

    def _taken_notes(self, new: Sequence[str]) -> tuple[str, ...]:
        notes, self.notes = (*self.notes, *new), []
        return notes

    def _start_over(self) -> None:
        """As it was when the step began."""
        self._clear_gradients()
        self.random.restore()

    def _clear_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=not self.gradients.keeps_buffers)

    def _outcome(self, summed: Summed) -> tuple[Tensor, Coming]:
        """The length of the whole gradient, and the same with all losses in one tensor.

        Where one is not finite, the optimizer changes nothing, without anyone having to wait for the device.
        """
        norm = torch.nn.utils.get_total_norm(self._gradient_pieces())
        outcome = torch.stack([norm.to(summed.losses[0]), *summed.losses])
        self.optimizer.found_inf = (~torch.isfinite(outcome).all()).float()  # type: ignore[attr-defined]
        return norm, Coming(outcome)

    def _gradient_pieces(self) -> list[Tensor]:
        return pieces_of([parameter.grad for parameter in self.parameters if parameter.grad is not None])

    def _checked(self, outcome: Coming, summed: Summed) -> list[float]:
        """The outcome as numbers, in one transfer from the device; DivergedError when one is not finite."""
        figures = outcome.numbers()
        if not all(map(math.isfinite, figures)):
            self.gradients.forget()
            self._clear_gradients()
            raise self._diverged(figures[1:], summed.micro_batches)
        return figures

    def _update(self, rate: float, grad_norm: Tensor) -> None:
        if self.config.optim.max_grad_norm:
            share = self.config.optim.max_grad_norm / (grad_norm + CLIP_EPSILON)
            torch._foreach_mul_(self._gradient_pieces(), share.clamp(max=1.0))
        set_learning_rate(self.optimizer, rate)
        self.rule.before_update(self.step + 1)
        if isinstance(self.optimizer, AdamWInPieces):  # whose first update needs room, before it changes anything
            self.gradients.beside(self.optimizer.step)
        else:
            self.optimizer.step()
        is_changed = self.rule.after_update(self.step + 1, self.optimizer)
        self._clear_gradients()
        if is_changed:
            self.renew_optimizer()

    def _sample(self) -> None:
        """Run the model over a few training rows, each by itself, so that none is padded."""
        with torch.no_grad(), mode(self.model, training=False):
            for example in self.examples.train[:SAMPLE_ROWS]:
                self.task.loss_sum(self.model, self.task.collate([example], self._pad_id))

    def _diverged(self, losses: Sequence[float], micro_batches: Sequence[Sequence[int]]) -> DivergedError:
        pairs = zip(losses, micro_batches, strict=True)
        guilty = [rows for loss, rows in pairs if not math.isfinite(loss)] or micro_batches
        rows = sorted(self.examples.train[index].row for batch in guilty for index in batch)
        shown = ", ".join(f"{row:,}" for row in rows[:SHOWN_ROWS]) + (" ..." if len(rows) > SHOWN_ROWS else "")
        rate = learning_rate(self.step + 1, self.total_steps, self.config.optim)
        return DivergedError(
            f"The loss or its gradient became NaN or infinite at step {self.step + 1} (learning rate {rate:.2e}, "
            f"dataset rows {shown}); the weights of step {self.step} are unharmed.",
            "Lower the learning rate, for example to a tenth, or look at these rows.",
        )

    def _remember(self, eval_loss: float | None) -> bool:
        """Keep the best measurement, and stop once `patience` in a row, over whole epochs, were no better.

        What is new can stand still for some steps before it learns, and many measurements fit into these.
        """
        self.last_eval_loss = eval_loss
        if eval_loss is None:
            return False
        if not math.isfinite(eval_loss):
            raise DivergedError(
                f"The validation loss became NaN or infinite at step {self.step}.",
                "Lower the learning rate, for example to a tenth; earlier checkpoints are kept.",
            )
        if eval_loss < self.best_eval_loss:
            self.best_step, self.best_eval_loss, self.measurements_since_best = self.step, eval_loss, 0
            return True
        self.measurements_since_best += 1
        grace = TASKS[self.task.name].grace_epochs * self.plan.steps_per_epoch
        is_due = self.step - self.best_step >= grace
        is_over = 0 < self.config.patience <= self.measurements_since_best
        self.stopped_early = is_due and is_over and self.step < self.total_steps
        return False

    def _is_due(self, every: int, step: int = 0) -> bool:
        return (step or self.step) % every == 0 or (step or self.step) == self.total_steps

    @property
    def _pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)
