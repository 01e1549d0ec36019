"""Runs that repeat bit for bit on a GPU too; on a CPU they always do.

On a GPU it costs speed: sums are formed in a fixed order, the fastest kernels are left out, and the steps of small
models are not replayed as graphs. A step of an 8B model, 4 x 2048 tokens, took 512 instead of 473 ms on an H200;
`python -m tests.bench.step --groups small,large --sides ours,ours_deterministic` says how much elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(is_wanted: bool) -> Iterator[None]:
    """Let torch use reproducible kernels only, inside; RuntimeError from an operation that has none."""
    if not is_wanted:
        yield
        return
    os.environ.setdefault(WORKSPACE, ":4096:8")  # what cuBLAS asks for; read when it is first used
    before = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark
