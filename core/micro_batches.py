"""How the rows of an optimizer step become batches, each one forward and one backward pass.

Packed where the task and the model allow it (`core/data/packing.py`), else padded. Neither changes the gradient of a
step, nor does the size: that is why a run may go on with smaller batches when memory is short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from core.config import TrainConfig
from core.data.packing import Shape, divide, shared_prefix
from core.data.tokenized import lengths_of
from core.examples import Examples
from core.loss import device_of
from core.mode import all_modules
from core.packed_attention import attention_in_words
from core.schedule import StepPlan
from core.tasks.task import Task

PASS_TOKENS = {"cpu": 2048}  # of a packed batch, unless the settings say how many rows
PASS_TOKENS_ELSEWHERE = 16384  # as far as memory goes


class MicroBatches:
    """The batches of a run: `packed` ones of up to `tokens` positions, or padded ones of up to `rows` rows.

    `reason` says why rows are padded. `shares_prefix`: packed rows hold a beginning that all their examples share once.
    """

    def __init__(self, task: Task, pad_id: int, rows: int, tokens: int, reason: str = "") -> None:
        self.task, self.pad_id, self.rows, self.tokens, self.reason = task, pad_id, rows, tokens, reason
        self.shape = Shape()
        self.shares_prefix = False
        self.attention = ""  # in words

    @property
    def packed(self) -> bool:
        """Whether rows stand behind each other."""
        return not self.reason

    def divide(self, examples: Sequence[Any], rows: Sequence[int]) -> list[list[int]]:
        """The rows of a step by micro-batch, those with the longest rows first so that memory peaks early."""
        lengths = {row: len(examples[row].input_ids) for row in rows}
        ordered = sorted(rows, key=lambda row: (-lengths[row], row))
        if not self.packed:
            return [ordered[start : start + self.rows] for start in range(0, len(ordered), self.rows)]
        prefix = self._prefix([examples[row] for row in rows])
        own = {row: length - prefix for row, length in lengths.items()}
        return divide(ordered, own, self.tokens - prefix)

    def batch(self, examples: Sequence[Any]) -> Any:
        """One batch of these examples."""
        if not self.packed:
            return self.task.collate(examples, self.pad_id)
        return self.task.pack(examples, self.pad_id, self.shape, self._prefix(examples))

    def batches(self, examples: Sequence[Any]) -> Iterator[Any]:
        """All examples, batch by batch."""
        for rows in self.divide(examples, range(len(examples))):
            yield self.batch([examples[row] for row in rows])

    def _prefix(self, examples: Sequence[Any]) -> int:
        return shared_prefix(examples) if self.shares_prefix else 0

    def halve(self, longest: int, least: int, computed: int) -> bool:
        """Make batches half as large as one of `computed` positions; False when that leaves fewer than `least`.

        One row, of up to `longest` tokens, is the smallest batch there is.
        """
        if not self.packed:
            if self.rows <= 1 or self.rows // 2 * longest < least:
                return False
            self.rows //= 2
            return True
        half = max(longest, min(self.tokens, computed) // 2)
        if half >= self.tokens or half < least:
            return False
        self.tokens = half
        return True

    @property
    def size_in_words(self) -> str:
        """The most that a batch holds."""
        return f"{self.tokens:,} tokens" if self.packed else f"{self.rows} rows"

    def state_dict(self) -> dict[str, int]:
        """What a resumed run needs to divide its steps alike."""
        return {"rows": self.rows, "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The inverse of `state_dict`."""
        self.rows, self.tokens = int(state["rows"]), int(state["tokens"])

    def describe(self) -> str:
        """How batches are made and why, a sentence for the log."""
        if not self.packed:
            return f"Rows are padded, at most {self.size_in_words} together: {self.reason}."
        once = "; a beginning that rows share is computed once" if self.shares_prefix else ""
        return f"Rows are packed, at most {self.size_in_words} together{once}; {self.attention}."


def micro_batches_of(
    model: nn.Module, task: Task, examples: Examples, plan: StepPlan, config: TrainConfig, pad_id: int
) -> MicroBatches:
    """Packed batches where task and model take them, else padded ones."""
    longest = max([*lengths_of(examples.train), *lengths_of(examples.validation)])
    reason = "" if config.packing else "packing is off"
    reason = reason or ("NEFTune's noise goes by the length of a row" if config.optim.neftune_alpha else "")
    reason = reason or task.why_not_packed(model, longest)
    device, rows = device_of(model).type, plan.micro_batch_size
    tokens = rows * longest if config.micro_batch_size else PASS_TOKENS.get(device, PASS_TOKENS_ELSEWHERE)
    made = MicroBatches(task, pad_id, rows, min(tokens, plan.batch_size * longest), reason)
    made.shares_prefix = device == "cpu" and not reason and not drops_at_random(model)
    made.attention = "" if reason else attention_in_words(model)
    return made


def drops_at_random(model: nn.Module) -> bool:
    """Whether a dropout of the model or of its adapters is on in training."""
    config: Any = getattr(model, "config", None)
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    settings = (value for name, value in getattr(text, "__dict__", {}).items() if "drop" in name)
    own = (vars(module).get(name) for module in all_modules(model) for name in ("p", "dropout"))
    return any(isinstance(share, float) and share > 0 for share in (*settings, *own))
