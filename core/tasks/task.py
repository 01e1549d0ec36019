"""What the trainer asks of a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from core.config import TrainConfig
from core.data.packing import PackedBatch, Shape
from core.data.records import Record
from core.data.token_cache import TokenCache
from core.data.token_parts import Progress
from core.examples import Example, Examples
from core.mode import mode
from core.models import load_model
from core.scoring.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Tick = Callable[[], None]


def idle() -> None:
    """Do nothing between two batches."""


class CountedBatch(Protocol):
    """A batch of any task, which knows how many tokens it holds beside its padding."""

    n_tokens: int
    input_ids: Tensor


class Task:
    """A task; subclasses say how records become batches, what the loss of a batch is, and how good the model is."""

    name: ClassVar[str]  # in `core.tasks.choice.TASKS`
    writes: ClassVar[bool] = False  # the model answers in words

    @classmethod
    def of(cls, records: Sequence[Record], config: TrainConfig) -> Self:
        """The task as these records need it; DatasetError when they cannot be learned from."""
        return cls()

    def load(self, folder: Path, config: TrainConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model as the task uses it, frozen, and its tokenizer; ModelError when it cannot do the task."""
        return load_model(folder, config.dtype, quantization=config.quantization)

    def new_modules(self, model: nn.Module) -> tuple[str, ...]:
        """What the task added to the pretrained model, such as a head: trained whole, beside the adapter."""
        return ()

    def facts(self) -> dict[str, Any]:
        """What must be known to load an adapter of this task again, JSON-ready; empty when the base says it all."""
        return {}

    def prepare(
        self,
        records: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        config: TrainConfig,
        context_length: int,
        progress: Progress | None,
        virtual_tokens: int,
    ) -> Examples:
        """Split the records and tokenise both sides; DatasetError when there is nothing to train on."""
        raise NotImplementedError

    label_smoothing = 0.0  # while training; measured is the plain loss
    cache: TokenCache | None = None  # where tokens may be kept from one run to the next

    def bind(self, model: nn.Module, config: TrainConfig) -> None:
        """Called once with the model as it will train, its adapter on it; extend it."""
        self.label_smoothing = config.optim.label_smoothing

    def smoothing(self, model: nn.Module) -> float:
        """The label smoothing of a pass in the model's present mode (Szegedy et al. 2016, section 7)."""
        return self.label_smoothing if model.training else 0.0

    def collate(self, examples: Sequence[Any], pad_id: int) -> Any:
        """Put examples into one batch, padded on the right."""
        raise NotImplementedError

    def why_not_packed(self, model: nn.Module, longest: int) -> str:
        """Why examples of up to `longest` tokens cannot stand behind each other in one row; empty when they can."""
        return "this task pads its rows"

    def pack(self, examples: Sequence[Any], pad_id: int, shape: Shape, prefix: int) -> PackedBatch:
        """Put examples behind each other into one row; called only when `why_not_packed` knows no reason."""
        raise NotImplementedError

    def computing(self, model: nn.Module, batch: Any) -> AbstractContextManager[None]:
        """What the forward and the backward pass of a batch run in."""
        return nullcontext()

    def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
        """The sum of the loss over everything that is trained in a batch, a scalar in float32 or better."""
        raise NotImplementedError

    def judged(self, model: nn.Module, batch: Any) -> tuple[Tensor, Sequence[Any]]:
        """The `loss_sum` of a batch, and for each of its rows what was expected and what the model made of it.

        Nothing for the rows when only the loss counts.
        """
        return self.loss_sum(model, batch), ()

    def scores(self, outcomes: Sequence[Any]) -> Scores:
        """Figures beside the loss, from all that `judged` gave, in whatever order."""
        return Scores()

    def answer(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], rows: int, tick: Tick = idle
    ) -> Scores:
        """Answer the records with the active adapters, `rows` at a time, greedily, and score the answers.

        `tick` is called between two batches; it may raise to give up.
        """
        return Scores()


def mean_loss(task: Task, model: nn.Module, examples: Sequence[Example], pad_id: int, micro_batch_size: int) -> float:
    """Mean loss per trained term over all examples, dropout off; NaN when there is nothing to measure.

    Terms count the same whatever row they stand in.
    """
    return measure(task, model, examples, pad_id, micro_batch_size)[0]


def measure(
    task: Task, model: nn.Module, examples: Sequence[Example], pad_id: int, micro_batch_size: int
) -> tuple[float, Scores]:
    """`mean_loss`, and the figures that come with the same forward passes."""
    ordered = sorted(examples, key=lambda example: -len(example.input_ids))  # little padding, and memory peaks first
    starts = range(0, len(ordered), micro_batch_size)
    batches = (task.collate(ordered[start : start + micro_batch_size], pad_id) for start in starts)
    return measure_batches(task, model, batches, sum(example.n_trained for example in examples))


@torch.no_grad()
def measure_batches(task: Task, model: nn.Module, batches: Iterable[Any], trained: int) -> tuple[float, Scores]:
    """The loss summed over batches and divided by their `trained` terms, NaN for none, and the figures; dropout off."""
    if not trained:
        return math.nan, Scores()
    total = torch.zeros((), dtype=torch.float64)
    outcomes: list[Any] = []
    with mode(model, training=False):
        for batch in batches:
            with task.computing(model, batch):
                loss, found = task.judged(model, batch)
            total += loss.double().cpu()
            outcomes += found
    return float(total) / trained, task.scores(outcomes)
