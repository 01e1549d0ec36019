"""A run's own random numbers: the same whatever the caller draws, and saved so that a resumed run draws the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class RandomState:
    """The states of Python's, NumPy's and torch's generators (CPU and every CUDA device)."""

    python: tuple[Any, ...]
    numpy: dict[str, Any]
    torch_cpu: Tensor
    torch_cuda: list[Tensor]

    @classmethod
    def current(cls) -> RandomState:
        """The states of the process now."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), dict(np.random.get_state(legacy=False)), torch.get_rng_state(), cuda)

    @classmethod
    def seeded(cls, seed: int) -> RandomState:
        """The states that follow from `seed`; the process keeps its own."""
        own = cls.current()
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        made = cls.current()
        own.restore()
        return made

    def restore(self) -> None:
        """Make these the states of the process."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda:
            torch.cuda.set_rng_state_all(self.torch_cuda)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw from these states inside, remember where they got to, and give the process its own back."""
        outside = RandomState.current()
        self.restore()
        try:
            yield
        finally:
            inside = RandomState.current()
            self.python, self.numpy = inside.python, inside.numpy
            self.torch_cpu, self.torch_cuda = inside.torch_cpu, inside.torch_cuda
            outside.restore()

    def tensors(self) -> dict[str, Tensor]:
        """The large parts, ready for safetensors."""
        named = {
            "python": torch.tensor(self.python[1], dtype=torch.int64),
            "numpy": torch.from_numpy(self.numpy["state"]["key"].astype(np.int64)),
            "torch": self.torch_cpu.clone(),
        }
        return named | {f"cuda.{index}": state.clone() for index, state in enumerate(self.torch_cuda)}

    def scalars(self) -> dict[str, Any]:
        """The small parts, ready for JSON."""
        return {
            "python_version": self.python[0],
            "python_gauss": self.python[2],
            "numpy_pos": int(self.numpy["state"]["pos"]),
            "numpy_has_gauss": int(self.numpy["has_gauss"]),
            "numpy_gauss": float(self.numpy["gauss"]),
        }

    @classmethod
    def load(cls, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> RandomState:
        """The inverse of `tensors` and `scalars`."""
        python = (scalars["python_version"], tuple(tensors["python"].tolist()), scalars["python_gauss"])
        key = tensors["numpy"].numpy().astype(np.uint32)
        numpy = {
            "bit_generator": "MT19937",
            "state": {"key": key, "pos": scalars["numpy_pos"]},
            "has_gauss": scalars["numpy_has_gauss"],
            "gauss": scalars["numpy_gauss"],
        }
        cuda = [tensors[name] for name in sorted(tensors, key=_index) if name.startswith("cuda.")]
        return cls(python, numpy, tensors["torch"], cuda)


def _index(name: str) -> int:
    return int(name.rpartition(".")[2]) if name.startswith("cuda.") else -1
