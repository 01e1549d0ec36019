"""One side of the training step in its own process; see `tests.bench.sides`."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

from core.memory import ALLOCATOR
from tests.bench.sides import Answer, serve
from tests.bench.training.rows import dense_rows, ragged_rows
from tests.bench.training.shapes import SHAPES

GIB = 2**30
WARM_UP_S = 2.0  # of products, before the rate of a warm card is taken
CAPS_GIB = {"ours_capped": 17.8, "ours_nf4_capped": 8.2}  # what Unsloth takes for the 8B shape with its checkpointing


def main() -> None:
    """Answer requests until there are no more."""
    serve(lambda settings: Worker(**settings).answer)


class Worker:
    """What answers for a side: it imports at once and makes the model when asked, as idle sides hold no GPU memory."""

    def __init__(self, side: str, shape: str, device: str, r: int, scratch: str, ragged: bool, rows: int, length: int,
                 batch: int) -> None:  # fmt: skip
        os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
        if side.startswith("ours"):
            os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", ALLOCATOR)  # as the studio's workers have it
        if side.startswith("unsloth"):
            import unsloth  # noqa: F401 - before transformers, which it patches
        import torch

        self.torch, self.device, self.shape, self.side, self.batch = torch, device, shape, side, batch
        self.scratch, self.r = Path(scratch), r
        vocabulary = SHAPES[shape].vocabulary
        self.rows = ragged_rows(rows, vocabulary, length) if ragged else dense_rows(rows, length, vocabulary)
        if side == "ours" or side.startswith("ours_"):
            from tests.bench.training.ours import OurSide as kind
        elif side != "roofline":
            from tests.bench.training.rivals import RivalSide as kind  # type: ignore[assignment]
        self._kind: Any = None if side == "roofline" else kind
        self._made: Any = None
        self._started = False

    def answer(self, do: str, **options: Any) -> Answer:
        """Do what is asked: gradients, steps, fits or roofline."""
        found: Answer = getattr(self, f"_{do}")(**options)
        gc.collect()
        if self.device == "cuda":
            self.torch.cuda.empty_cache()  # the next side needs the room
        return found

    def _gradients(self) -> Answer:
        from tests.bench.training.adapter import save_gradients

        found: list[Answer] = []
        path = self.scratch / f"{self.shape}-{self.side}-{os.getpid()}.safetensors"
        layers = SHAPES[self.shape].layers
        rows = self.rows[: self.batch]
        self._sides.with_gradients(rows, lambda: found.append(save_gradients(self._sides.model, layers, path)))
        return found[0] | {"path": self._sides.path}

    def _steps(self, count: int, warmup: int) -> Answer:
        if self.device == "cuda" and not self._started:
            self.torch.cuda.reset_peak_memory_stats()  # before the first step: replayed graphs allocate nothing
        if not self._started:
            self._sides.start(self.rows, self.batch)
            self._started = True
        began = time.perf_counter()
        for _ in range(warmup):
            self._sides.step()
        self._synchronize()
        start = time.perf_counter()
        tokens = [self._sides.step() for _ in range(count)]  # each follows the one before, as in training
        self._synchronize()
        seconds = [(time.perf_counter() - start) / count] * count
        return {"seconds": seconds, "tokens": tokens, "peak_gib": self._peak(), "reserved_gib": self._reserved(),
                "path": self._sides.path, "warmup_seconds": (start - began) / max(1, warmup)}  # fmt: skip

    def _fits(self, length: int) -> Answer:
        """Whether two steps on one row of that length fit into the memory."""
        from core.errors import OutOfMemoryError

        if self.device == "cuda":
            self.torch.cuda.reset_peak_memory_stats()
        try:
            self._sides.start(dense_rows(1, length, SHAPES[self.shape].vocabulary), 1)
            self._sides.step()
            self._sides.step()
        except (self.torch.OutOfMemoryError, OutOfMemoryError):
            return {"fits": False, "peak_gib": self._peak()}
        finally:
            self._sides.model.zero_grad(set_to_none=True)
        return {"fits": True, "peak_gib": self._peak(), "total_gib": self._total()}

    def _roofline(self) -> Answer:
        """TFLOP/s of one large bfloat16 matrix product, medians of five: of the card as it is, and once it is warm.

        Training keeps a card at the limit of its power, where its clock is lower than in the first second.
        """
        size = 8192 if self.device == "cuda" else 512
        left = self.torch.randn(size, size, device=self.device, dtype=self.torch.bfloat16)
        self._product_rate(left)
        cold = median(self._product_rate(left) for _ in range(5))
        warm_at = time.perf_counter() + WARM_UP_S
        while time.perf_counter() < warm_at:
            self._product_rate(left)
        name = self.torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        warm = median(self._product_rate(left) for _ in range(5))
        return {"tflops": warm, "cold_tflops": cold, "device": name, "total_gib": self._total()}

    def _product_rate(self, left: Any, repeats: int = 10) -> float:
        self._synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            left @ left
        self._synchronize()
        return float(2e-12 * len(left) ** 3 * repeats / (time.perf_counter() - start))

    @property
    def _sides(self) -> Any:
        if self._made is None:
            self._made = self._kind(self.shape, self.device, self.r, self.side, self.scratch)
            gc.collect()
            if self.side in CAPS_GIB and self.device == "cuda":
                self.torch.cuda.empty_cache()
                self.torch.cuda.set_per_process_memory_fraction(min(1.0, CAPS_GIB[self.side] / self._total()))
        return self._made

    def _synchronize(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def _peak(self) -> float | None:
        return self.torch.cuda.max_memory_allocated() / GIB if self.device == "cuda" else None

    def _reserved(self) -> float | None:
        return self.torch.cuda.max_memory_reserved() / GIB if self.device == "cuda" else None

    def _total(self) -> float:
        return self.torch.cuda.mem_get_info()[1] / GIB if self.device == "cuda" else 1e9


if __name__ == "__main__":
    main()
