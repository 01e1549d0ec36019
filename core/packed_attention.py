"""Attention over packed rows: every example sees itself, and nothing else, without a mask of the whole row.

transformers lets an attention function be named in a model's config; `packed_attention` names this one while a packed
batch is computed. Whether a model gives the same with it as row by row is tried on the model itself, never assumed: one
with an attention of its own, or one that carries a state along the row, fails that and takes padded batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.data.packing import Layout, PackedBatch, pack
from core.data.tokenized import TokenizedExample
from core.mode import all_modules, mode
from core.ops.precision import norm_dtype
from core.short_attention import Part, is_short, short_attention

NAME = "lora_studio_packed"
SHORT_ROWS = (5, 3, 3)  # tokens of the examples that a model is tried with; neighbours of one length go together
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")  # where configs say them
TOLERANCES = {  # of a packed row against its single rows, by the format that every layer rounds to
    torch.float64: 1e-4,
    torch.float32: 1e-4,
    torch.float16: 0.1,
    torch.bfloat16: 0.25,  # SmolLM2: 0.1 between two kernels that are both right, 0.8 and more for a leak
}
UNKNOWN = ("s_aux", "position_bias", "cache")  # what models may ask of their attention, and this one cannot do
VARLEN_DTYPES = (torch.float16, torch.bfloat16)


class NotPackable(Exception):
    """Why this attention cannot run on a packed row."""


@dataclass
class _Current:
    """The batch being computed: one for all layers, whatever thread runs their backward pass."""

    layout: Layout | None = None
    calls: int = 0
    masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)  # what all layers use, made once


_current = _Current()


@dataclass(frozen=True)
class _Settings:
    """What a layer asks of its attention."""

    scaling: float
    window: int  # tokens that a token sees, itself among them; 0 for all before it
    dropout: float
    softcap: float


@contextmanager
def packed_attention(model: nn.Module, layout: Layout) -> Iterator[None]:
    """Let the layers of a transformers model attend within the examples of `layout`, forward and backward."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    configs = _configs(model)
    before = [config._attn_implementation_internal for config in configs]
    for config in configs:
        config._attn_implementation_internal = NAME
    outer, _current.layout, _current.masks = _current.layout, layout, {}
    try:
        yield
    finally:
        _current.layout, _current.masks = outer, {}
        for config, own in zip(configs, before, strict=True):
            config._attn_implementation_internal = own


def _configs(model: nn.Module) -> list[Any]:
    """Every config that a module of the model looks its attention up in."""
    modules = all_modules(model)
    found = {id(config): config for module in modules if (config := module.__dict__.get("config")) is not None}
    return [config for config in found.values() if hasattr(config, "_attn_implementation_internal")]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each example: query (1, H, T, D), key and value (1, K, T, D) to (1, T, H, D).

    Raises NotPackable for what it cannot do exactly.
    """
    layout = _current.layout
    if layout is None:
        raise NotPackable("its attention runs outside the batch")
    _check(module, query, key, attention_mask, is_causal, kwargs)
    _current.calls += 1
    window = sliding_window if sliding_window and sliding_window < layout.longest + layout.prefix else 0
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    settings = _Settings(scaling, window, dropout, softcap or 0.0)
    is_ragged = len(set(layout.lengths)) != 1  # rows of one length are a dense batch, whose kernels are faster
    is_plain = not dropout and not softcap and layout.bounds is not None and is_ragged
    if is_plain and not why_no_varlen(query.device, query.dtype, query.shape[-1], value.shape[-1]):
        return _varlen(query, key, value, layout, settings), None
    return _by_example(query, key, value, layout, settings), None


def _check(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool | None, kwargs: Any
) -> None:
    if mask is not None:
        raise NotPackable("it makes an attention mask of its own")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise NotPackable("its attention looks ahead")
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise NotPackable("its attention reads another sequence than the row")
    for name in UNKNOWN:
        if kwargs.get(name) is not None:
            raise NotPackable(f"its attention uses {name}")


def why_no_varlen(device: torch.device, dtype: torch.dtype, size: int, value_size: int) -> str:
    """Why torch's attention over rows of any length cannot be used; empty when it can."""
    if device.type != "cuda":
        return "it needs a CUDA device"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of the Ampere generation or newer"
    if dtype not in VARLEN_DTYPES:
        return f"it has no kernel for {str(dtype).removeprefix('torch.')}"
    if size != value_size or size > 256 or size % 8:
        return f"it has no kernel for heads of {size}"
    return "" if _has_varlen() else "this torch does not have it"


def _has_varlen() -> bool:
    """Whether torch has it in the form of 2.11 and newer."""
    return "window_size" in _varlen_options()


@cache
def _varlen_options() -> frozenset[str]:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(signature(varlen_attn).parameters)


def _varlen(query: Tensor, key: Tensor, value: Tensor, layout: Layout, settings: _Settings) -> Tensor:
    """All examples in one kernel: FlashAttention over `bounds` (torch.nn.attention.varlen)."""
    from torch.nn.attention.varlen import varlen_attn

    is_grouped = query.shape[1] != key.shape[1]  # torch 2.11 takes that as it is, newer ones want to be told
    told: Any = {"enable_gqa": True} if is_grouped and "enable_gqa" in _varlen_options() else {}
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))  # (T, H, D)
    bounds: Any = layout.bounds
    window = (settings.window - 1, 0) if settings.window else (-1, 0)
    longest = layout.longest
    out: Any = varlen_attn(
        q, k, v, bounds, bounds, longest, longest, scale=settings.scaling, window_size=window, **told
    )
    made: Tensor = out[None]
    return made


def _by_example(query: Tensor, key: Tensor, value: Tensor, layout: Layout, settings: _Settings) -> Tensor:
    """Neighbours of one length share a call of torch's attention; split and cat cost one copy each way."""
    runs = [(length, len(list(same))) for length, same in groupby(layout.lengths)]
    is_plain = not settings.dropout and not settings.softcap
    if is_plain and is_short(query, key, value, layout.prefix + layout.longest):
        return short_attention(query, key, value, _parts(query, key, runs, layout.prefix, settings), settings.scaling)
    if query.device.type == "cpu" and query.dtype in VARLEN_DTYPES:  # backward it takes thrice as long in these
        return _by_example(query.float(), key.float(), value.float(), layout, settings).to(query.dtype)
    if len(runs) == 1 and not layout.prefix:
        return _together(runs[0][1], query, key, value, settings)
    sizes = [length * count for length, count in runs]
    q, k, v = (torch.split(tensor, [layout.prefix, *sizes], dim=2) for tensor in (query, key, value))
    seen = (k[0], v[0])
    out = [_causal(q[0], *seen, settings).transpose(1, 2)] if layout.prefix else []
    for (_, count), *own in zip(runs, q[1:], k[1:], v[1:], strict=True):
        out.append(_together(count, own[0], own[1], own[2], settings, seen if layout.prefix else ()))
    return torch.cat(out, dim=1)


def _parts(query: Tensor, key: Tensor, runs: Sequence[tuple[int, int]], prefix: int, settings: _Settings) -> list[Part]:
    """The beginning that all rows share, if they do, and the runs behind it."""
    heads, like = query.shape[1] // key.shape[1], query.new_empty(0, dtype=norm_dtype(query))
    found = [Part(0, 1, prefix, 0, _mask(prefix, prefix, like, settings, heads))] if prefix else []
    start = prefix
    for length, count in runs:
        found.append(Part(start, count, length, prefix, _mask(length, prefix + length, like, settings, heads)))
        start += count * length
    if start != query.shape[2]:
        raise NotPackable("its attention reads another sequence than the row")
    return found


def _together(count: int, q: Tensor, k: Tensor, v: Tensor, settings: _Settings, seen: Sequence[Tensor] = ()) -> Tensor:
    """Attention of `count` examples of one length to themselves, and to the k and v of a beginning: (1, T, H, D)."""
    rows = [_rows(tensor, count) for tensor in (q, k, v)]
    if seen:
        rows[1:] = [torch.cat([p.expand(count, -1, -1, -1), t], 2) for p, t in zip(seen, rows[1:], strict=True)]
    return _causal(rows[0], rows[1], rows[2], settings).transpose(1, 2).flatten(0, 1).unsqueeze(0)


def _rows(tensor: Tensor, count: int) -> Tensor:
    """(1, H, count * t, D) as (count, H, t, D): views alone, whose backward pass copies nothing."""
    return tensor if count == 1 else torch.unflatten(tensor.squeeze(0), 1, (count, -1)).transpose(0, 1)


def _causal(q: Tensor, k: Tensor, v: Tensor, settings: _Settings) -> Tensor:
    """Attention of (B, H, t, D) to (B, K, s, D), of which the last t positions are the queries' own."""
    length, seen = q.shape[2], k.shape[2]
    mask = None
    if seen > length or 0 < settings.window < length or settings.softcap:
        mask = _mask(length, seen, q, settings)
    if settings.softcap and mask is not None:
        return _capped(q, k, v, mask, settings)
    is_grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, mask, settings.dropout, is_causal=mask is None, scale=settings.scaling, enable_gqa=is_grouped
    )


def _mask(length: int, seen: int, like: Tensor, settings: _Settings, repeats: int = 1) -> Tensor:
    """What `length` queries see of `seen` positions, (length * repeats, seen): 0 or minus infinity, as kernels take it.

    In booleans where scores are capped, which no kernel does; every query comes `repeats` times.
    """
    key = (length, seen, settings.window, bool(settings.softcap), like.dtype, like.device, repeats)
    if key not in _current.masks:
        sees = torch.ones(length, seen, dtype=torch.bool, device=like.device).tril(seen - length)
        sees = sees.triu(seen - length - settings.window + 1) if settings.window else sees
        sees = sees.repeat_interleave(repeats, 0)
        added = torch.zeros(sees.shape, dtype=like.dtype, device=like.device)
        _current.masks[key] = sees if settings.softcap else added.masked_fill_(~sees, -torch.inf)
    return _current.masks[key]


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, settings: _Settings) -> Tensor:
    """Attention with scores bounded by c tanh(score / c), as in Gemma 2."""
    k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
    scores = torch.tanh(q @ k.transpose(2, 3) * settings.scaling / settings.softcap) * settings.softcap
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1, dtype=exact).to(q.dtype)
    return F.dropout(weights, settings.dropout) @ v


@torch.no_grad()
def why_not_packed(model: nn.Module, hidden: Callable[[PackedBatch | Tensor], Tensor], longest: int) -> str:
    """Why rows of up to `longest` tokens cannot be packed for this model; empty when they give the same numbers.

    `hidden` runs the model: a packed batch, or ids (B, T) of examples of one length, to (B, T, D).
    """
    examples = _trial(model, longest)
    batch = pack(examples, pad_id=0).to(next(model.parameters()).device)
    _current.calls = 0
    with mode(model, training=False):
        try:
            with packed_attention(model, batch.layout):
                together = hidden(batch)[0]
        except NotPackable as reason:
            return str(reason)
        except (AttributeError, TypeError, ValueError, RuntimeError, KeyError) as error:
            return f"it does not take a packed row ({type(error).__name__})"
        if not _current.calls:
            return "its attention cannot be replaced"
        alike = [list(same) for _, same in groupby(examples, key=lambda example: len(example.input_ids))]
        ids = [torch.tensor([each.input_ids for each in some], device=together.device) for some in alike]
        alone = [row for each in ids for row in hidden(each)]
    rows = torch.split(together, [len(each) for each in alone])
    worst = max(_difference(one, other) for one, other in zip(rows, alone, strict=True))
    return "" if worst <= TOLERANCES[together.dtype] else "a packed row does not give the numbers of its single rows"


def _difference(one: Tensor, other: Tensor) -> float:
    """How far numbers are apart, as a share of their size."""
    return float((one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-12))


def _trial(model: Any, longest: int) -> list[TokenizedExample]:
    """A few examples of different tokens; one is longer than the model's attention window, where rows can be."""
    config = model.config.get_text_config()
    windows = [size for name in WINDOWS if isinstance(size := getattr(config, name, None), int) and size < longest]
    lengths = [min(longest, max(windows) + 5) if windows else SHORT_ROWS[0], *SHORT_ROWS[1:]]
    vocabulary = model.get_input_embeddings().num_embeddings
    examples, token = [], 1
    for row, length in enumerate(lengths):
        ids = tuple((token + 7 * at) % vocabulary for at in range(length))
        examples.append(TokenizedExample(ids, (False,) * length, row))
        token += 3
    return examples


def why_no_varlen_on(model: nn.Module) -> str:
    """Why the attention of this model cannot take all examples in one kernel; empty when it can."""
    config: Any = model.config
    text = config.get_text_config()
    if getattr(text, "attention_dropout", 0.0) or getattr(text, "attn_logit_softcapping", None):
        return "it has no kernel for dropout or capped scores"
    size = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    parameter = next(model.parameters())
    return why_no_varlen(parameter.device, parameter.dtype, size, size)


def attention_in_words(model: nn.Module) -> str:
    """The kernel that packed rows take on this model, and why it is not a faster one."""
    reason = why_no_varlen_on(model)
    return f"attention example by example ({reason})" if reason else "attention of all examples in one kernel"
