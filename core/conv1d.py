"""Telling GPT-2's projections, transformers' Conv1D, from other layers, without importing transformers for it.

A Conv1D keeps its weight as (in, out). Where transformers was never imported no module can be one, and importing it
takes as long as torch itself.
"""

from __future__ import annotations

import sys

from torch import nn


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is a Conv1D, or of a class made from it."""
    kind = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return kind is not None and isinstance(module, kind)
