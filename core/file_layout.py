"""Which tensors of a model's files make which of its parameters, by transformers' own table.

Most parameters are one tensor of the files, of the same name. Some have another name there (GPT-NeoX's `lm_head` is
`embed_out`), and some are made of many tensors: the experts of a mixture are one 3-D parameter in memory, and in the
files a matrix each. What is read by the table is written back by it, so that whoever reads the base's files, now or
with another program, reads those of the merged model.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from core.errors import AdapterError
from core.export.huggingface import DTYPES, TensorEntry


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, by name, as its header has them."""
    with safe_open(path, framework="pt") as file:
        names: list[str] = file.keys()
        slices = {name: file.get_slice(name) for name in sorted(names)}
        return {n: TensorEntry(n, DTYPES[s.get_dtype()], tuple(s.get_shape())) for n, s in slices.items()}


class FileLayout:
    """What stands for each parameter of a bare skeleton in files with these tensors."""

    def __init__(self, skeleton: Any, entries: Mapping[str, TensorEntry]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key

        table = get_model_conversion_mapping(skeleton)
        self._renamings = [step for step in table if isinstance(step, WeightRenaming)]
        self._converters = [step for step in table if isinstance(step, WeightConverter)]
        self._known = set(skeleton.state_dict())
        self.prefix = f"{getattr(skeleton, 'base_model_prefix', '')}."  # the model's body, which some files leave out
        self.names: dict[str, str] = {}  # parameter -> the tensor of the files that it is
        self.fused: dict[str, Fused] = {}  # parameter -> the tensors of the files that make it
        self.bodiless: set[str] = set()  # tensors of the files without the name of the body
        for name in sorted(entries, key=dot_natural_key):  # the order in which transformers stacks them
            self._place(skeleton, entries[name])

    def _place(self, skeleton: Any, entry: TensorEntry) -> None:
        from transformers.core_model_loading import rename_source_key

        called, _ = rename_source_key(entry.name, self._renamings, [])
        stored, pattern = rename_source_key(entry.name, self._renamings, self._converters)
        if self.in_memory(stored) not in self._known:  # as in files that already have the names of today
            stored, pattern = entry.name, None
        parameter = self.in_memory(stored)
        if parameter not in self._known:
            return  # transformers ignores it
        if parameter == self.prefix + stored:
            self.bodiless.add(entry.name)
        if pattern is None:
            self.names[parameter] = entry.name
        elif parameter in self.fused:
            self.fused[parameter].add(entry, called, pattern)
        else:
            converter = next(step for step in self._converters if pattern in step.source_patterns)
            fused = Fused(stored, converter, skeleton, self)
            fused.add(entry, called, pattern)
            first, *_ = converter.target_patterns
            made = (stored.replace(first, target) for target in converter.target_patterns)
            self.fused |= {self.in_memory(name): fused for name in made}

    def has(self, parameter: str) -> bool:
        """Whether the files have a value for a parameter."""
        return parameter in self.names or parameter in self.fused

    def in_memory(self, stored: str) -> str:
        """A name as the model has it: the same, or without or with the name of the body in front."""
        candidates = (stored, stored.removeprefix(self.prefix), self.prefix + stored)
        return next((name for name in candidates if name in self._known), stored)


class Fused:
    """Tensors of the files that are one or more parameters in memory, in another shape."""

    def __init__(self, first: str, converter: Any, skeleton: Any, layout: FileLayout) -> None:
        """`first` is what `converter` calls the first of the parameters."""
        self.entries: dict[str, TensorEntry] = {}  # tensors of the files, by name
        self._patterns: dict[str, str] = {}  # of the converter, which they fit, by the same names
        self._sources: dict[str, str] = {}  # these names, by what the converter calls them, without the body's name
        self._first, self._converter, self._skeleton, self._layout = first, converter, skeleton, layout

    def add(self, entry: TensorEntry, called: str, pattern: str) -> None:
        """Take in the next tensor of the files, which the converter finds by `pattern`."""
        self.entries[entry.name] = entry
        self._patterns[entry.name] = pattern
        self._sources[called.removeprefix(self._layout.prefix)] = entry.name

    def parameters(self) -> dict[str, TensorEntry]:
        """What they make; AdapterError when this cannot be taken apart into what it was made of."""
        dtype = next(iter(self.entries.values())).dtype
        try:
            made = self.combine({name: torch.empty(e.shape, device="meta") for name, e in self.entries.items()})
            back = {name: tuple(tensor.shape) for name, tensor in self.split(made).items()}
        except Exception as error:  # the operations raise anything
            raise self._irreversible() from error
        if back != {name: entry.shape for name, entry in self.entries.items()}:
            raise self._irreversible()
        return {name: TensorEntry(name, dtype, tuple(tensor.shape)) for name, tensor in made.items()}

    def combine(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters, by name, of the tensors of the files."""
        converter = deepcopy(self._converter)
        for name, pattern in self._patterns.items():
            converter.add_tensor(self._first, name, pattern, tensors[name])
        found = self._converted(converter, self._first)
        return {self._layout.in_memory(name): tensor for name, tensor in found.items()}

    def split(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the files, by name, that make these parameters."""
        converter, first = self._converter.reverse_transform(), ""
        for parameter, value in parameters.items():
            first, pattern = converter.rename_source_key(parameter)
            converter.add_tensor(first, parameter, pattern, value)
        found = self._converted(converter, first)
        return {self._sources[name.removeprefix(self._layout.prefix)]: tensor for name, tensor in found.items()}

    def _converted(self, converter: Any, first: str) -> dict[str, Tensor]:
        found = converter.convert(first, model=self._skeleton, config=self._skeleton.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}

    def _irreversible(self) -> AdapterError:
        return AdapterError(
            f"The base's files hold {self._first!r} in parts, and transformers does not say how to write them again.",
            "Use the adapter unmerged.",
        )
