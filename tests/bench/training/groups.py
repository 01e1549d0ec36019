"""What the training-step bench runs: groups of sides on one shape and one set of rows, the most telling first."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Group:
    """Sides that step on the same rows. A side named twice is measured twice, which shows how steady the machine is."""

    name: str
    title: str
    shape: str
    sides: tuple[str, ...]
    rows: int
    length: int  # tokens of a row, or of the longest one
    batch: int  # rows of an optimizer step
    ragged: bool = False
    together: bool = True  # all models in memory at once, taking turns; else one model after the other
    compares: bool = True  # gradients, with those of float32
    finds_longest: bool = False
    r: int = 16

    def settings(self, side: str, device: str, scratch: str) -> dict[str, object]:
        """What a side's process is told."""
        return {
            "side": side, "shape": self.shape, "device": device, "r": self.r, "scratch": scratch,
            "ragged": self.ragged, "rows": self.rows, "length": self.length, "batch": self.batch,
        }  # fmt: skip


SMALL_SIDES = ("ours", "peft", "peft_bf16", "unsloth", "ours_deterministic")
GROUPS = (
    Group("small", "SmolLM2-135M shape, 8 x 512", "135m", SMALL_SIDES, 8, 512, 8),
    Group(
        "large", "Llama-3.1-8B shape, 4 x 2048", "8b",
        ("ours", "peft", "frozen", "peft_bf16", "unsloth", "ours_capped", "unsloth_gc", "peft_liger", "peft_gc",
         "ours_deterministic"),
        4, 2048, 4, together=False,
    ),
    Group("short", "Llama-3.2-1B shape, 4 x 512", "1b", SMALL_SIDES, 4, 512, 4),
    Group(
        "ragged", "Llama-3.2-1B shape, log-normal lengths, half prompt", "1b", ("ours", "peft", "peft_bf16", "unsloth"),
        128, 2048, 16, ragged=True,
    ),
    Group(
        "dora", "Llama-3.1-8B shape, 1 x 2048, DoRA", "8b", ("ours", "ours_dora", "peft_dora"),
        1, 2048, 1, together=False, compares=False,
    ),
    Group(
        "longest", "Llama-3.1-8B shape, longest row that trains", "8b", ("peft", "ours", "peft_gc"),
        1, 2048, 1, together=False, compares=False, finds_longest=True,
    ),
    Group(
        "nf4", "Llama-3.1-8B shape, NF4, 4 x 2048", "8b",
        ("ours_nf4", "ours_nf4_capped", "peft_nf4_gc", "unsloth_nf4_gc"),
        4, 2048, 4, together=False, compares=False,
    ),
)  # fmt: skip
TINY_GROUPS = (  # the machinery alone, for a test and for a machine without a GPU
    Group("tiny", "tiny shape, 2 x 16", "tiny", SMALL_SIDES, 2, 16, 2, r=4),
    Group("tiny_ragged", "tiny shape, ragged", "tiny", ("ours", "peft"), 8, 64, 4, ragged=True, together=False, r=4),
)

NEEDS = {"peft": "peft", "exact": "peft", "unsloth": "unsloth", "liger": "liger_kernel", "nf4": "bitsandbytes"}


def missing(side: str) -> str:
    """The package that a side needs and this machine lacks, or nothing."""
    if side.startswith("ours"):
        return ""
    needed = [package for word, package in NEEDS.items() if word in side]
    return next((package for package in needed if find_spec(package) is None), "")
