"""A transformers decoder layer on the fused functions: norm and q, k, v; rotary positions; attention; o; MLP.

Attention itself stays behind transformers' own interface, so that every implementation registered there works.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from core.ops.gated_mlp import GatedMLP, gated_mlp
from core.ops.group import Group
from core.ops.kernels import is_hopper
from core.ops.normed_linear import begin_branch
from core.ops.output_linear import output_linear
from core.ops.precision import compute_dtype
from core.ops.rms_norm import Norm, rms_norm
from core.ops.rope import Turn, rope


class Again(IntEnum):
    """What a layer gives up, to compute it again or to have it brought back: the cheapest for its memory first."""

    NOTHING = 0
    MLP = 1  # gate and up
    ASIDE = 2  # and all else it keeps waits in the host's memory
    ATTENTION = 3  # instead of that, all of the attention is computed again
    LAYER = 4  # and what lies between them
    OFFLOAD = 5  # and its input waits in the host's memory


@dataclass(frozen=True)
class Attention:
    """The parts of a self-attention with its norms."""

    module: nn.Module  # the model's own, which attention functions ask for their settings
    norm: Norm
    heads: Group  # q, k and v, or the one layer that gives all three
    output: Group
    query_norm: Norm | None = None  # over each head, as in Qwen 3 and Gemma 3
    key_norm: Norm | None = None
    post: Norm | None = None  # of the output, as in Gemma 2 and 3
    options: dict[str, Any] | None = None  # further arguments of the attention function


@dataclass(frozen=True)
class FusedLayer:
    """A decoder layer, run in place of the model's own."""

    attention: Attention
    mlp: GatedMLP

    @property
    def groups(self) -> tuple[Group, ...]:
        """All its linear layers."""
        return self.attention.heads, self.attention.output, self.mlp.inner, self.mlp.outer

    def __call__(
        self,
        hidden: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        again: Again = Again.NOTHING,
        keeps_random: bool = False,
        **options: Any,
    ) -> Tensor:
        """Hidden states (B, T, D) to hidden states; `keeps_random` where something is dropped at random."""
        given = hidden, self.attention, position_embeddings, mask, options
        if again == Again.ATTENTION and torch.is_grad_enabled():
            hidden = checkpoint(_attention, *given, use_reentrant=False, preserve_rng_state=keeps_random)
        else:
            hidden = _attention(*given)
        return gated_mlp(hidden, self.mlp, keeps_inner=again == Again.NOTHING)


def _attention(
    hidden: Tensor, parts: Attention, positions: tuple[Tensor, Tensor], mask: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """hidden + attention(hidden)."""
    query, key, value, hidden = _heads(hidden, parts, positions)
    mixed = _attend(parts, query, key, value, mask, options)
    return output_linear(mixed, hidden, parts.output, parts.post)


def _heads(hidden: Tensor, parts: Attention, positions: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k and v (B, T, heads, width), normed and turned; and the hidden states, for the sum behind the attention."""
    module: Any = parts.module
    dtype = compute_dtype(hidden)
    cos, sin = (each.to(dtype) for each in positions)
    if parts.query_norm is None or parts.key_norm is None:
        turn = Turn(cos, sin, module.head_dim, module.config.num_key_value_heads)
        (query, key, value), hidden = begin_branch(hidden, parts.norm, parts.heads, dtype, turn)
        return query, key, value, hidden
    outputs, hidden = begin_branch(hidden, parts.norm, parts.heads, dtype)
    query, key, value = (each.view(*each.shape[:-1], -1, module.head_dim) for each in outputs)
    query, key = rms_norm(query, parts.query_norm), rms_norm(key, parts.key_norm)
    return rope(query, cos, sin), rope(key, cos, sin), value, hidden


def _attend(
    parts: Attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """The model's own attention, (B, T, heads * width)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    module: Any = parts.module
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager)
    with _preferred_kernels(query.device):
        made, _ = function(
            module,
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            mask,
            dropout=module.attention_dropout if module.training else 0.0,
            scaling=module.scaling,
            **(parts.options or {}),
            **options,
        )
    mixed: Tensor = made.flatten(2)
    return mixed


def _preferred_kernels(device: torch.device) -> AbstractContextManager[None]:
    """On Hopper and newer cuDNN's attention first: forward and backward took 1.2 ms where FlashAttention 2 took 2.1."""
    if device.type != "cuda" or not is_hopper(device):
        return nullcontext()
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    chosen: AbstractContextManager[None] = sdpa_kernel(order, set_priority=True)
    return chosen
