"""Next-token loss of a causal language model, with the output layer computed only where something is trained.

The output layer of a small model is a fifth of its work and its logits are the largest tensor of a step. So the
hidden states of the trained positions are gathered first, and the output layer and the cross entropy run over them in
chunks, each of which forms its gradient at once: 4 instead of 6 matrix products a token, and one chunk of logits in
memory. Whether a model's logits are really `transform(head(hidden))` is checked on the model itself, never assumed;
where they are not, the model's own logits are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.adapters.host import AdaptedModule
from core.memory import LOGIT_CHUNK_BYTES
from core.ops.cross_entropy import cross_entropy

IGNORED = -100  # label of a position that is not trained
PROBE_TOKENS = 8
TILE_ROWS = 128  # of a matrix product on a GPU


@dataclass(frozen=True)
class Head:
    """How a model turns hidden states into logits: `transform(output(body(...)))`."""

    body: nn.Module
    output: nn.Module
    transform: Callable[[Tensor], Tensor]
    label_smoothing: float = 0.0  # share of the target that all tokens get alike

    @property
    def is_plain(self) -> bool:
        """Whether the logits are what a linear layer gives, and the targets single tokens."""
        is_linear = isinstance(self.output, nn.Linear | AdaptedModule)
        return is_linear and self.transform is unchanged and not self.label_smoothing

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, (N, D) to (N, V), in float32 or better."""
        logits: Tensor = self.transform(self.output(hidden))
        return _at_least_float32(logits)


def find_head(model: Any) -> Head | None:
    """Split a transformers causal model into body and head; None when its logits cannot be had that way.

    The split is tried on a few tokens and kept only when it gives the model's own logits.
    """
    body = getattr(model, "base_model", None)
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if body is None or body is model or output is None:
        return None
    head = Head(body, output, _transform(model.config))
    return head if _gives_own_logits(model, head) else None


def _transform(config: Any) -> Callable[[Tensor], Tensor]:
    """What models do to the product of hidden state and output matrix: scale it, cap it, or nothing."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
    cap = getattr(text, "final_logit_softcapping", None)
    if scale == 1.0 and not cap:
        return unchanged

    def transform(logits: Tensor) -> Tensor:
        scaled = logits if scale == 1.0 else logits * scale
        return torch.tanh(scaled / cap) * cap if cap else scaled

    return transform


def unchanged(logits: Tensor) -> Tensor:
    """The logits of most models."""
    return logits


@torch.no_grad()
def _gives_own_logits(model: Any, head: Head) -> bool:
    """Whether the head makes the model's own logits of what the body gives, called as `hidden_states` calls it."""
    calls: list[tuple[list[Any], Any]] = []  # what the model told its body beside None and False, and what that gave

    def listen(body: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        calls.append(([each for each in (*args, *kwargs.values()) if each is not None and each is not False], out))

    hook = head.body.register_forward_hook(listen, with_kwargs=True)
    was_training = model.training
    model.eval()  # dropout would make two runs differ
    try:
        vocabulary = model.get_input_embeddings().num_embeddings
        tokens = torch.arange(min(PROBE_TOKENS, vocabulary), device=device_of(model)).unsqueeze(0)
        own = model(input_ids=tokens, use_cache=False).logits[0].float()
        told, out = calls[0]
        is_alike = len(told) == 1 and told[0] is tokens
        hidden = out.last_hidden_state if is_alike else hidden_states(head.body, tokens)
        split = head.logits(hidden[0])
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):
        return False  # an architecture with another calling convention: its own logits always work
    finally:
        hook.remove()
        model.train(was_training)
    tolerance = 1e-4 if own.dtype == torch.float32 and next(model.parameters()).dtype != torch.bfloat16 else 2e-2
    return own.shape == split.shape and torch.allclose(own, split.float(), rtol=tolerance, atol=tolerance)


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's weights."""
    return next(model.parameters()).device


def hidden_states(body: nn.Module, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """Last hidden states (B, T, D). No attention mask: padding stands on the right, and a token never looks ahead."""
    places = {} if position_ids is None else {"position_ids": position_ids}
    hidden: Tensor = body(input_ids=input_ids, use_cache=False, **places).last_hidden_state
    return hidden


def loss_sum(
    model: nn.Module, head: Head | None, input_ids: Tensor, labels: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Sum over the trained tokens of -log p(token | tokens before it), a scalar in float32 or better.

    input_ids (B, T) on the model's device, padded on the right; labels (B, T), best left on the host, are -100 where
    nothing is trained. A batch without a trained token gives a 0 that still has a gradient.
    """
    positions, targets = trained_positions(labels)
    positions, targets = positions.to(input_ids.device), targets.to(input_ids.device)
    return loss_at(model, head, input_ids, positions, targets, label_smoothing=label_smoothing)


def loss_at(
    model: nn.Module,
    head: Head | None,
    input_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    position_ids: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Sum of -log p(target) over `positions` (N) of the flattened batch (B, T), with `targets` (N); see `loss_sum`.

    Targets of -100 add nothing. `position_ids` (B, T) are for rows that do not begin at 0. As many positions as there
    are in the batch must be all of them in order.
    """
    if head is not None:
        hidden = hidden_states(head.body, input_ids, position_ids).flatten(0, 1)  # (B * T, D)
        smooth = replace(head, label_smoothing=label_smoothing)
        return chunked_loss(smooth, _at(hidden, positions), targets)
    places = {} if position_ids is None else {"position_ids": position_ids}
    logits = model(input_ids=input_ids, use_cache=False, **places).logits.flatten(0, 1)
    rows = _at_least_float32(_at(logits, positions))
    return F.cross_entropy(rows, targets, reduction="sum", label_smoothing=label_smoothing)


def _at(rows: Tensor, positions: Tensor) -> Tensor:
    return rows if len(positions) == len(rows) else rows.index_select(0, positions)


def trained_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positions in the flattened batch whose next token is trained, (N), and those next tokens, (N).

    Call it on host tensors: a device would have to stop and tell how many there are.
    """
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()  # position t predicts token t + 1
    positions = (following != IGNORED).nonzero().squeeze(1)
    return positions, following[positions]


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def chunked_loss(head: Head, rows: Tensor, targets: Tensor, chunk_rows: int = 0) -> Tensor:
    """Cross entropy of `rows` (N, D) with `targets` (N), summed, never holding more than a chunk of the logits."""
    chunk_rows = chunk_rows or _rows_at_once(head, rows)
    parameters = [parameter for parameter in head.output.parameters() if parameter.requires_grad]
    if torch.is_grad_enabled() and (rows.requires_grad or parameters):
        loss: Tensor = _ChunkedLoss.apply(head, targets, chunk_rows, rows, *parameters)  # type: ignore[no-untyped-call]
        return loss
    losses = (_chunk_loss(head, *chunk) for chunk in _chunks(rows, targets, chunk_rows))
    return sum(losses, start=rows.new_zeros((), dtype=_loss_dtype(rows)))


def _rows_at_once(head: Head, rows: Tensor) -> int:
    """As many as LOGIT_CHUNK_BYTES hold the logits of; on a GPU in whole tiles, as a half-filled one takes as long."""
    size = rows.element_size() if head.is_plain else max(4, rows.element_size())
    fitting = max(1, LOGIT_CHUNK_BYTES // (size * _vocabulary(head.output)))
    return fitting // TILE_ROWS * TILE_ROWS if rows.is_cuda and fitting > TILE_ROWS else fitting


def _vocabulary(output: nn.Module) -> int:
    return max(int(parameter.shape[0]) for parameter in output.parameters())


def _loss_dtype(rows: Tensor) -> torch.dtype:
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def _chunks(rows: Tensor, targets: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    if not len(rows):
        return []
    return list(zip(torch.split(rows, size), torch.split(targets, size), strict=True))


def _chunk_loss(head: Head, rows: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(head.logits(rows), targets, reduction="sum", label_smoothing=head.label_smoothing)


def _chunk_gradients(
    head: Head, rows: Tensor, targets: Tensor, parameters: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Any]]:
    """The loss of some rows, and the gradients of the rows and of the parameters, None for one that is not used."""
    with torch.enable_grad():
        leaf = rows.requires_grad_(True)
        if not head.is_plain:
            loss = _chunk_loss(head, leaf, targets)
            return loss.detach(), torch.autograd.grad(loss, [leaf, *parameters], allow_unused=True)
        logits = head.output(leaf)
    # The logits' own memory, unknown to autograd: a linear layer does not need its output backward. An adapter might.
    slopes = (
        logits.data.contiguous()
        if isinstance(head.output, nn.Linear)
        else logits.detach().clone(memory_format=torch.contiguous_format)
    )
    losses = cross_entropy(slopes, targets)
    return losses.sum(), torch.autograd.grad(logits, [leaf, *parameters], slopes, allow_unused=True)


class _ChunkedLoss(torch.autograd.Function):
    """Head and cross entropy whose gradients are formed in the forward pass, chunk by chunk.

    Only (N, D) is kept for the backward pass, never (N, V), and the logits are not computed twice.
    """

    @staticmethod
    def forward(ctx: Any, head: Head, targets: Tensor, chunk_rows: int, rows: Tensor, *parameters: Tensor) -> Tensor:
        total = rows.new_zeros((), dtype=_loss_dtype(rows))
        d_rows = torch.empty_like(rows)
        d_parameters = [torch.zeros_like(parameter) for parameter in parameters]
        start = 0
        for chunk, chunk_targets in _chunks(rows.detach(), targets, chunk_rows):
            loss, (d_chunk, *d_rest) = _chunk_gradients(head, chunk, chunk_targets, parameters)
            d_rows[start : start + len(chunk)] = d_chunk
            for whole, part in zip(d_parameters, d_rest, strict=True):
                if part is not None:
                    whole += part
            total += loss
            start += len(chunk)
        ctx.save_for_backward(d_rows, *d_parameters)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        d_rows, *d_parameters = ctx.saved_tensors
        return (None, None, None, *(_times(part, grad_outputs[0]) for part in (d_rows, *d_parameters)))


def _times(part: Tensor, scale: Tensor) -> Tensor:
    """part * scale in the format of `part`, the scale not rounded to 16 bits first: it would bend every gradient."""
    return torch.mul(part, scale.reshape(1), out=torch.empty_like(part))
