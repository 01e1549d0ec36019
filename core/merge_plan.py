"""What becomes of every tensor in a base model's files when an adapter is merged: worked out from names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from core.adapters.host import AdaptedModule
from core.adapters.inject import adapters_of
from core.conv1d import is_conv1d
from core.errors import AdapterError
from core.export.huggingface import TensorEntry
from core.export.peft import load_adapter
from core.file_layout import FileLayout, Fused, read_entries
from core.quantize.model import quantizable
from core.quantize.rounding import BaseRounding
from core.weight_files import weight_files

_Change = tuple[AdaptedModule | None, str]  # the adapted layer, and which of its parameters


@dataclass(frozen=True)
class Job:
    """One tensor of the merged folder: where its values come from and what they become."""

    entry: TensorEntry
    source: str  # the base's tensor; empty for one that the base lacks and the adapter brings
    host: AdaptedModule | None = None  # the adapted layer it belongs to, if any
    key: str = ""  # which of the layer's parameters it is
    rounding: BaseRounding | None = None  # for the weight of a layer that was quantised in training, or is to be
    is_conv1d: bool = False  # of such a weight: it is (in, out)
    fused: Fused | None = None  # the tensors of the base that it changes together with


@dataclass
class MergePlan:
    """Every tensor of every file of the merged folder, and whether tied embeddings must part."""

    layout: FileLayout
    files: dict[Path, dict[str, Job]]  # by the base's file, then by tensor
    parameters: dict[str, Job] = field(default_factory=dict)  # changed ones that several tensors of the files make
    unties: bool = False

    def __post_init__(self) -> None:
        self._home = {name: path for path, jobs in self.files.items() for name in jobs}

    @property
    def jobs(self) -> list[Job]:
        """All tensors to write."""
        return [job for jobs in self.files.values() for job in jobs.values()]

    @property
    def size_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(job.entry.size_bytes for job in self.jobs)

    def find(self, parameter: str) -> str | None:
        """The base's tensor that a parameter is, or, where several make it, the parameter itself."""
        return parameter if parameter in self.layout.fused else self.layout.names.get(parameter)

    def read(self, source: str) -> Tensor:
        """The value of what `find` found."""
        fused = self.layout.fused.get(source)
        return self._stored(source) if fused is None else self.combined(fused)[source]

    def combined(self, fused: Fused) -> dict[str, Tensor]:
        """The base's values of the parameters that some tensors make."""
        return fused.combine({name: self._stored(name) for name in fused.entries})

    def _stored(self, name: str) -> Tensor:
        with safe_open(self._home[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def _jobs_with(self, source: str) -> dict[str, Job]:
        """Where the job of what `find` found stands."""
        fused = self.layout.fused.get(source)
        if fused is None:
            return self.files[self._home[source]]
        if source not in self.parameters:
            self.parameters |= {name: Job(entry, name) for name, entry in fused.parameters().items()}
            for name in fused.entries:  # to the end of their file, where they stand together
                jobs = self.files[self._home[name]]
                jobs[name] = replace(jobs.pop(name), fused=fused)
        return self.parameters

    def place(self, parameter: str, names: Sequence[str], host: AdaptedModule | None, key: str) -> None:
        """Mark a parameter's tensor as changed; one tied to another of `names` gets a tensor of its own."""
        own = self.find(parameter)
        source = own or next((found for name in names if (found := self.find(name))), None)
        if source is None:
            raise AdapterError(
                f"The base model's files have no tensor for {parameter!r}, which the adapter changes.",
                "Check that the adapter is of this base; if it is, save the base with this version of transformers.",
            )
        jobs = self._jobs_with(source)
        entry = jobs[source].entry if own else replace(jobs[source].entry, name=parameter)
        if host is not None and tuple(host.base_layer.get_parameter(key).shape) != entry.shape:
            raise AdapterError(f"{source!r} of the base has shape {entry.shape}.", "Pick the base of this adapter.")
        jobs[entry.name] = Job(entry, source, host, key)

    def add(self, parameter: str, host: AdaptedModule, key: str) -> None:
        """Put a tensor that the base lacks and the adapter brings, such as that of a new head, into the last file."""
        jobs = self.files[list(self.files)[-1]]
        dtype = next(iter(jobs.values())).entry.dtype
        entry = TensorEntry(parameter, dtype, tuple(host.base_layer.get_parameter(key).shape))
        jobs[parameter] = Job(entry, "", host, key)

    def name_body(self) -> None:
        """Put the name of the model's body in front of every tensor whose parameter has it there."""
        for jobs in self.files.values():
            for name in jobs.keys() & self.layout.bodiless:
                job = jobs[name]
                jobs[name] = replace(job, entry=replace(job.entry, name=self.layout.prefix + name))

    def round(self, skeleton: nn.Module, rounding: BaseRounding) -> None:
        """Have the weights of all quantisable layers rounded before they are merged."""
        for path, layer in quantizable(skeleton).items() if rounding.is_needed else ():
            source = self.find(f"{path}.weight")
            if source is None:
                raise AdapterError(f"The base model's files have no tensor for {path!r}.", "Merge it unquantised.")
            jobs = self._jobs_with(source)
            jobs[source] = replace(jobs[source], rounding=rounding, is_conv1d=is_conv1d(layer))

    def widen(self) -> None:
        """Write every floating-point tensor as float32."""
        for jobs in (*self.files.values(), self.parameters):
            for name, job in jobs.items():
                if job.entry.dtype.is_floating_point:
                    jobs[name] = replace(job, entry=replace(job.entry, dtype=torch.float32))


def _ties(skeleton: nn.Module) -> dict[str, tuple[str, ...]]:
    """For every parameter that several modules share: all its names."""
    groups: dict[int, list[str]] = {}
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return {name: tuple(names) for names in groups.values() if len(names) > 1 for name in names}


def plan_merge(skeleton: Any, base: Path, adapter_folder: Path, adapter: str) -> MergePlan:
    """Put the adapter of a folder on a bare skeleton, under the name `adapter`, and plan its merge into the base."""
    entries = {path: read_entries(path) for path in weight_files(base)}
    layout = FileLayout(skeleton, {name: entry for own in entries.values() for name, entry in own.items()})
    files = {path: {name: Job(entry, name) for name, entry in own.items()} for path, own in entries.items()}
    plan, ties = MergePlan(layout, files), _ties(skeleton)
    load_adapter(skeleton, adapter_folder, adapter)
    changes: dict[str, _Change] = {}
    for path, adapted in adapters_of(skeleton).hosts.items():
        changes |= {f"{path}.{key}": (adapted, key) for key in _changed_keys(adapted, adapter)}
    tied = dict.fromkeys(
        name
        for parameter in changes
        for name in ties.get(parameter, ())
        if not _stays_one(ties[name], changes, adapter)
    )
    if tied:
        _check_untie(skeleton, set(tied), set(changes))
        plan.unties = True
    for parameter in dict.fromkeys([*changes, *tied]):
        names = ties.get(parameter, ())
        host, key = changes.get(parameter, (None, ""))
        if (
            host is not None
            and not any(plan.find(name) for name in (parameter, *names))
            and _brings(host, key, adapter)
        ):
            plan.add(parameter, host, key)
            continue
        is_repeated = parameter not in tied and any(plan.find(name) for name in names)
        if not is_repeated or plan.find(parameter):
            plan.place(parameter, names, host, key)
    return plan


def _brings(host: AdaptedModule, key: str, adapter: str) -> bool:
    """Whether an adapter has a whole tensor for a parameter, rather than something to add to the base's."""
    replacement = host.replacement(adapter)
    return replacement is not None and key in replacement.names and host.adapter(adapter) is None


def _stays_one(names: Sequence[str], changes: Mapping[str, _Change], adapter: str) -> bool:
    """Whether the parameters called `names`, which the base ties, were all replaced by one and the same tensor."""
    found = {_replaced_by(changes.get(name), adapter) for name in names}
    return len(found) == 1 and None not in found


def _replaced_by(change: _Change | None, adapter: str) -> int | None:
    """The identity of the tensor that stands for a parameter; None where an adapter adds to it, or nothing does."""
    host, key = change or (None, "")
    replacement = None if host is None or host.adapter(adapter) is not None else host.replacement(adapter)
    return None if replacement is None else id(replacement.tensors()[key])


def _changed_keys(host: AdaptedModule, adapter: str) -> list[str]:
    replacement = host.replacement(adapter)
    keys = list(replacement.names) if replacement is not None else []
    part = host.adapter(adapter)
    return keys if part is None else list(dict.fromkeys([*keys, *part.changes]))


def _check_untie(skeleton: Any, tied: set[str], changed: set[str]) -> None:
    """Only input and output embeddings can part: transformers has a switch for this tie and for no other."""
    ends = {"in": skeleton.get_input_embeddings(), "out": skeleton.get_output_embeddings()}
    names = {end: f"{path}.weight" for path, m in skeleton.named_modules() for end, layer in ends.items() if m is layer}
    if not (tied <= set(names.values()) or tied & changed <= {names.get("out")}):
        raise AdapterError(
            f"The adapter changes {', '.join(sorted(tied & changed))}, which this model ties to other layers.",
            "Use the adapter unmerged.",
        )
