"""The wrapper in a model: it keeps the original module as `base_layer` and runs the active adapters on its output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from core.adapters.base import Adapter
from core.adapters.merged_weight import merged_weight
from core.adapters.row_stack import RowStack, stack_rows
from core.errors import AdapterError
from core.ops.frozen_linear import frozen_linear, runs_sooner
from core.quantize.linear import QuantizedLinear


class Replacement(nn.Module):
    """Own copies of some of a module's parameters, used in their place while the adapter is active.

    It carries `modules_to_save` (all parameters), trained biases (only "bias"), and the weights that full and partial
    fine-tuning train. The copies are float32 and are cast to the dtype of the original in use, so that a bfloat16 model
    is trained on float32 masters. They lie beside the originals, which are needed to switch the adapter off: a fully
    fine-tuned float32 model takes twice the memory of its weights, a bfloat16 one three times.
    """

    def __init__(self, names: Sequence[str], copies: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.copies = nn.ParameterList(copies)

    def tensors(self) -> dict[str, Tensor]:
        """The copies by the names of the parameters they stand for."""
        return dict(zip(self.names, self.copies, strict=True))

    def cast_like(self, base: nn.Module) -> dict[str, Tensor]:
        """The copies in the dtype of the parameters they stand for."""
        return {name: copy.to(base.get_parameter(name).dtype) for name, copy in self.tensors().items()}


@dataclass(frozen=True)
class RowGroups:
    """Which rows of a batch each adapter serves; rows in no group get the bare base."""

    count: int
    groups: tuple[tuple[str, Tensor], ...]
    names: tuple[str | None, ...] = ()  # the adapter of each row
    stacks: dict[int, RowStack] = field(default_factory=dict, compare=False)  # by the identity of the module


class AdaptedModule(nn.Module):
    """A module of the base model with any number of named adapters, of which the active ones run."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapters = nn.ModuleDict()
        self.replacements = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.rows: RowGroups | None = None
        self.originals: dict[str, nn.Parameter] = {}  # not empty only while merged
        self.packed: nn.Module | None = None  # a quantised base_layer, while a merged dense one stands in for it
        self.training = base_layer.training

    def __getattr__(self, name: str) -> Any:
        """Attributes of the original module stay readable: models ask their layers for `weight` or `in_features`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("_modules", {}).get("base_layer")
            if base is None:
                raise
        for active in self.active:  # empty before __init__ is done: `active` is set after `base_layer`
            if (replacement := self.replacement(active)) is not None and name in replacement.names:
                return replacement.cast_like(base)[name]
        return getattr(base, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original module's output with the active adapters added, or with one adapter per row of the batch."""
        if self.originals:
            return self.base_layer(*args, **kwargs)
        if self.rows is not None:
            return self._forward_rows(self.rows, args, kwargs)
        return self._adapt(self.active, self._call_base(self.active, args, kwargs), args, kwargs)

    def adapter(self, name: str) -> Adapter | None:
        """The adapter called `name` on this module, if it has one."""
        found = self._parts("adapters").get(name)
        return found if isinstance(found, Adapter) else None

    def replacement(self, name: str) -> Replacement | None:
        """The replaced parameters of adapter `name` on this module, if it has some."""
        found = self._parts("replacements").get(name)
        return found if isinstance(found, Replacement) else None

    def _parts(self, kind: str) -> dict[str, nn.Module | None]:
        """What `adapters` or `replacements` holds; several times as fast as by attribute, in every forward pass."""
        parts: dict[str, nn.Module | None] = self.__dict__["_modules"][kind]._modules
        return parts

    @property
    def original(self) -> nn.Module:
        """The base's own module, also while a dense one stands in for it because it is quantised and merged."""
        return self.base_layer if self.packed is None else self.packed

    def names(self) -> set[str]:
        """The names of all adapters that have something on this module."""
        return {*self.adapters, *self.replacements}

    def tensors(self, name: str, baked: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield (stored name below the module, tensor) of one adapter: PEFT's names; `baked` as `Adapter.baked`."""
        adapter, replacement = self.adapter(name), self.replacement(name)
        if adapter is not None:
            yield from (adapter.baked() if baked else adapter.tensors()).items()
        if replacement is not None:
            prefix = "base_layer." if adapter is not None else ""
            for key, copy in replacement.tensors().items():
                yield prefix + key, copy

    def trainable(self, name: str) -> list[nn.Parameter]:
        """The parameters of one adapter that an optimizer may change."""
        adapter, replacement = self.adapter(name), self.replacement(name)
        found = [] if adapter is None else adapter.trainable()
        return found if replacement is None else [*found, *replacement.parameters()]

    def add(self, name: str, part: Adapter | Replacement) -> None:
        """Put an adapter, or replaced parameters, on this module under a name."""
        kind = self.adapters if isinstance(part, Adapter) else self.replacements
        kind[name] = part.train(self.training).requires_grad_(False)

    @property
    def has_virtual_tokens(self) -> bool:
        """Whether an adapter on this embedding fills in positions of its own."""
        return any(isinstance(part, Adapter) and part.virtual_tokens for part in self.adapters.values())

    def remove(self, name: str) -> None:
        """Drop one adapter from this module."""
        for kind in (self.adapters, self.replacements):
            if name in kind:
                del kind[name]
        self.active = tuple(other for other in self.active if other != name)

    @torch.no_grad()
    def merge(self, names: Sequence[str], tied: dict[int, nn.Parameter]) -> None:
        """Put adapters into the original module's parameters; the originals are kept, for `unmerge` and for ties.

        `tied` collects what becomes of trained copies, over all modules: one that two modules share stays one tensor.
        A quantised module is dense while it is merged: rounding the sum to 4 bits again would lose most of it.
        """
        found = [adapter for name in names if (adapter := self.adapter(name)) is not None]
        if found and isinstance(self.base_layer, QuantizedLinear):
            self.packed, self.base_layer = self.base_layer, self.base_layer.to_linear()
        values = self._merged_copies(names, tied)
        for key in dict.fromkeys(key for adapter in found for key in adapter.changes):
            weight = values.get(key, self.base_layer.get_parameter(key))
            if not weight.is_floating_point():
                raise AdapterError("A quantised weight cannot be merged in place.", "Load the base in 16 or 32 bits.")
            merged = merged_weight(weight, [adapter.part(key) for adapter in found if key in adapter.changes])
            values[key] = nn.Parameter(merged, requires_grad=False)
        for key, value in values.items():
            self.originals[key] = self.base_layer.get_parameter(key)
            _set_parameter(self.base_layer, key, value)

    def _merged_copies(self, names: Sequence[str], tied: dict[int, nn.Parameter]) -> dict[str, nn.Parameter]:
        """The trained copies as parameters of the original module, in its dtype."""
        found: dict[str, nn.Parameter] = {}
        for name in names:
            replacement = self.replacement(name)
            for key, copy in replacement.tensors().items() if replacement is not None else ():
                if id(copy) not in tied:
                    value = copy.to(self.base_layer.get_parameter(key).dtype, copy=True)
                    tied[id(copy)] = nn.Parameter(value, requires_grad=False)
                found[key] = tied[id(copy)]
        return found

    def unmerge(self) -> None:
        """Put the original parameters back: the same objects, so bit for bit, and tied again if they were."""
        for key, original in self.originals.items():
            device = self.base_layer.get_parameter(key).device
            if original.device != device:  # the model was moved while merged
                original.data = original.data.to(device)
            _set_parameter(self.base_layer, key, original)
        self.originals = {}
        if self.packed is not None:
            self.base_layer, self.packed = self.packed, None

    def _call_base(self, names: Sequence[str], args: Any, kwargs: Any) -> Any:
        if self.has_virtual_tokens:
            args, kwargs = (self._table_ids(_input(args, kwargs)),), {}
        values: dict[str, Tensor] = {}
        for name in names:
            if (replacement := self.replacement(name)) is not None:
                values |= replacement.cast_like(self.base_layer)
            if (adapter := self.adapter(name)) is not None and adapter.replaces_parameters:
                values |= adapter.changed_parameters(self.base_layer, values)
        if values:
            return functional_call(self.base_layer, values, args, kwargs)
        if isinstance(self.base_layer, nn.Linear) and runs_sooner(self.base_layer, args, kwargs):
            return frozen_linear(args[0], self.base_layer)
        return self.base_layer(*args, **kwargs)

    def _runs_otherwise(self, name: str) -> bool:
        adapter = self.adapter(name)
        return adapter is not None and adapter.replaces_parameters

    def _adapt(self, names: Sequence[str], out: Any, args: Any, kwargs: Any) -> Any:
        for name in self._in_order(names):
            if (adapter := self.adapter(name)) is not None:
                x = _input(args, kwargs)
                out = adapter(x if adapter.virtual_tokens else self._table_ids(x), out, self.base_layer)
        return out

    def _in_order(self, names: Sequence[str]) -> Sequence[str]:
        """Those that replace outputs after those that add to them."""
        if len(names) < 2:
            return names
        return sorted(names, key=lambda name: (adapter := self.adapter(name)) is not None and adapter.runs_last)

    def _table_ids(self, x: Tensor) -> Tensor:
        """The input, but for an embedding with ids that its table has: virtual tokens (`core.prompt`) become 0."""
        return x.clamp(min=0) if self.has_virtual_tokens else x

    def _forward_rows(self, rows: RowGroups, args: Any, kwargs: Any) -> Any:
        """One pass of the original module over the whole batch, then each adapter over its own rows."""
        groups = [(name, index) for name, index in rows.groups if name in self.names()]
        if groups and _input(args, kwargs).shape[0] == 1:  # what all rows share, such as position ids
            args, kwargs = _spread((args, kwargs), rows.count)
        size = _input(args, kwargs).shape[0]
        length = _positions(_input(args, kwargs), rows.count) if groups else 1
        out = self._call_base((), args, kwargs)
        if (stack := self._stack(rows, out)) is not None:
            return stack.add_to(out, _input(args, kwargs))
        for name, own in groups:
            index = _spans(own, length)
            args_here, kwargs_here = _pick((args, kwargs), index, size)
            if name in self.replacements or self._runs_otherwise(name):
                piece = self._call_base((name,), args_here, kwargs_here)
            else:
                piece = _pick(out, index, size)
            out = _put(out, index, self._adapt((name,), piece, args_here, kwargs_here))
        return out

    def _stack(self, rows: RowGroups, out: Any) -> RowStack | None:
        """The rows' adapters as one, where nobody asks for gradients and all of them are plain LoRA."""
        if torch.is_grad_enabled() or not isinstance(out, Tensor) or out.dim() != 3 or self._parts("replacements"):
            return None
        adapters = [None if name is None else self.adapter(name) for name in rows.names]
        stack = stack_rows(adapters, out, rows.stacks.get(id(self)))
        if stack is not None:
            rows.stacks[id(self)] = stack
        return stack


def _input(args: Any, kwargs: Any) -> Tensor:
    tensor = args[0] if args else next(iter(kwargs.values()))
    if not isinstance(tensor, Tensor):
        raise AdapterError("An adapted layer was called without a tensor.", "Leave this layer out of target_modules.")
    return tensor


def _pick(value: Any, index: Tensor, count: int) -> Any:
    """Take rows `index` of every tensor that has the batch as its first dimension."""
    if isinstance(value, Tensor):
        return value.index_select(0, index) if value.dim() and value.shape[0] == count else value
    if isinstance(value, tuple):
        return tuple(_pick(entry, index, count) for entry in value)
    if isinstance(value, dict):
        return {key: _pick(entry, index, count) for key, entry in value.items()}
    return value


def _put(value: Any, index: Tensor, piece: Any) -> Any:
    """The output with `piece` in its rows `index`; of several outputs, in those of each."""
    if isinstance(value, Tensor):
        return value.index_copy(0, index, piece)
    if isinstance(value, tuple):
        return tuple(_put(entry, index, own) for entry, own in zip(value, piece, strict=True))
    return value


def _positions(x: Tensor, count: int) -> int:
    """How many entries of an input's first dimension are of one row: 1, or its length where the rows come end to end.

    So they come to the experts of a mixture and to what stands beside these: (rows times length, width).
    """
    is_flat = x.dim() == 2 and x.is_floating_point() and x.shape[0] % count == 0
    if x.shape[0] != count and not is_flat:
        raise AdapterError(
            f"This model gives a layer a batch of {x.shape[0]} rows instead of {count}.",
            "Run the adapters one after the other instead of in one batch.",
        )
    return x.shape[0] // count


def _spans(rows: Tensor, length: int) -> Tensor:
    """The entries of these rows in a first dimension that has `length` of each."""
    return rows if length == 1 else (rows[:, None] * length + torch.arange(length, device=rows.device)).flatten()


def _spread(value: Any, count: int) -> Any:
    """Give every tensor whose first dimension is 1 that many rows."""
    if isinstance(value, Tensor):
        return value.expand(count, *value.shape[1:]) if value.dim() and value.shape[0] == 1 else value
    if isinstance(value, tuple):
        return tuple(_spread(entry, count) for entry in value)
    if isinstance(value, dict):
        return {key: _spread(entry, count) for key, entry in value.items()}
    return value


def _set_parameter(module: nn.Module, path: str, parameter: nn.Parameter) -> None:
    owner, _, name = path.rpartition(".")
    setattr(module.get_submodule(owner), name, parameter)
