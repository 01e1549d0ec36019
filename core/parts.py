"""Which tensors of a model partial and bias-only fine-tuning train, by their names and shapes. Torch-free.

Names are those of transformers' parameters, which its weight files share up to the name of the body in front, so that
a plan made from the files and a trainer with the model before it choose the same.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping

from core.errors import ConfigError

HEADS = frozenset({"lm_head", "embed_out", "score", "classifier", "classification_head", "qa_outputs", "cls"})
_NORM = re.compile(r"norm|(^|_)ln(_|\d|$)")
_BLOCK = re.compile(r"(.+?)\.(\d+)\.")

Shapes = Mapping[str, tuple[int, ...]]


def norms(shapes: Shapes) -> list[str]:
    """Gains and biases of LayerNorm and RMSNorm."""
    return [name for name, shape in shapes.items() if len(shape) == 1 and _NORM.search(_module(name).lower())]


def biases(shapes: Shapes) -> list[str]:
    """All bias vectors, those of norms and of the head too (Zaken et al. 2021, section 3)."""
    return [name for name, shape in shapes.items() if len(shape) == 1 and re.fullmatch(r"(.*\.)?(\w+_)?bias", name)]


def head(shapes: Shapes) -> list[str]:
    """The output layer or classifier."""
    return [name for name in shapes if not HEADS.isdisjoint(name.split("."))]


def last_blocks(shapes: Shapes, count: int, tied: Collection[str] = ()) -> list[str]:
    """The last `count` blocks, the norm behind them, and the head, unless it is one of the `tied` tensors.

    Of several stacks the largest is meant: the decoder of an encoder-decoder. Raises ConfigError when the model has
    fewer blocks.
    """
    stack, depth = _largest_stack(shapes)
    if count > depth:
        raise ConfigError(f"The model has {depth} blocks, not {count}.", f"Set blocks to at most {depth}.")
    parent = stack.rpartition(".")[0]
    behind = {name for name in norms(shapes) if _module_path(name).rpartition(".")[0] == parent and "emb" not in name}
    behind |= set(head(shapes)) - set(tied)
    return [name for name in shapes if name in behind or _is_late(name, stack, depth - count)]


def _largest_stack(shapes: Shapes) -> tuple[str, int]:
    """The list of blocks with the most parameters, by the name in front of its numbers, and how long it is."""
    sizes: Counter[str] = Counter()
    lengths: Counter[str] = Counter()
    for name, shape in shapes.items():
        if (found := _BLOCK.match(name)) is not None:
            sizes[found[1]] += math.prod(shape)
            lengths[found[1]] = max(lengths[found[1]], int(found[2]) + 1)
    if not sizes:
        raise ConfigError("This model has no numbered blocks.", "Train another part of it, or all of it.")
    stack = sizes.most_common(1)[0][0]
    return stack, lengths[stack]


def _is_late(name: str, stack: str, first: int) -> bool:
    found = _BLOCK.match(name)
    return found is not None and found[1] == stack and int(found[2]) >= first


def _module_path(name: str) -> str:
    return name.rpartition(".")[0]


def _module(name: str) -> str:
    return _module_path(name).rpartition(".")[2]
