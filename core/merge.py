"""From base model and adapter to a folder that plain transformers loads, without loading the model.

A skeleton of the model, with no memory behind its weights, says which layer each tensor of the files belongs to; each
tensor is read, changed in float64, rounded once to its own dtype, and written before the next is read. Tensors that are
one parameter in memory, such as the experts of a layer, are read and changed together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from core.adapters.merged_weight import merged_weight
from core.adapters.merging import check_mergeable
from core.collector import collection_put_off
from core.errors import ConfigError
from core.export.huggingface import (
    copy_companions,
    new_folder,
    scrubbed_config,
    write_index,
    write_json,
    write_safetensors,
)
from core.export.method_file import read_quantization
from core.export.peft import check_repeated, repeated_weights
from core.export.peft_config import read_adapter_config, read_shapes, weights_file
from core.file_layout import Fused
from core.merge_plan import Job, MergePlan, plan_merge
from core.model_config import read_config
from core.models import inspect_model
from core.quantize.rounding import TRAINED, BaseRounding
from core.quantize.size import NONE
from core.skeleton import adapted_config, make_skeleton
from core.verify import MergeCheck, verify_merge

logger = logging.getLogger(__name__)
__all__ = ["MergeCheck", "merge_to_folder", "verify_merge"]

Progress = Callable[[int, int], None]  # called with (tensors written, tensors in all)
ADAPTER = "merged"  # the adapter's name on the skeleton
CARD = "A base model with an adapter merged into its weights. The base model's licence applies.\n"


@collection_put_off()
def merge_to_folder(
    base: Path | str,
    adapter_folder: Path | str,
    out_folder: Path | str,
    progress: Progress | None = None,
    dtype: str = "base",
    base_precision: str = TRAINED,
) -> Path:
    """Merge an adapter into a base model and write it as a folder that plain transformers loads; returns the folder.

    `dtype` "base" keeps each tensor's own dtype; "float32" keeps what rounding to 16 bits would lose, in a larger file.
    An adapter that was trained on a quantised base is merged into that base's values, so that it says what it said in
    training; `base_precision` "16-bit", "nf4" or "int8" picks another base, and the model card then has the difference.
    Needs memory for the largest parameter. Raises AdapterError when the adapter does not fit the base, and
    DiskFullError; `out_folder` must not exist, and appears only when it is whole.
    """
    base, adapter_folder, out_folder = Path(base), Path(adapter_folder), Path(out_folder)
    if dtype not in ("base", "float32"):
        raise ConfigError(f"dtype is {dtype!r}.", "Pick 'base' or 'float32'.")
    own = read_config(base)
    config = adapted_config(own, adapter_folder)
    skeleton = make_skeleton(config, base)
    check_mergeable(read_adapter_config(adapter_folder))
    plan = plan_merge(skeleton, base, adapter_folder, ADAPTER)
    rounding = BaseRounding(read_quantization(adapter_folder), base_precision)
    plan.round(skeleton, rounding)
    if dtype == "float32":
        plan.widen()
    if config is not own:
        plan.name_body()
    with new_folder(out_folder, plan.size_bytes) as scratch:
        _write_weights(plan, scratch, adapter_folder, progress or _silent)
        copy_companions(base, scratch)
        write_json(scratch / "config.json", scrubbed_config(config, dtype if dtype != "base" else None, plan.unties))
        _write_card(scratch, inspect_model(base).licence, rounding)
    return out_folder


def _silent(done: int, total: int) -> None:
    """No progress."""


def _write_weights(plan: MergePlan, folder: Path, adapter_folder: Path, progress: Progress) -> None:
    names = {path: path.name if len(plan.files) > 1 else "model.safetensors" for path in plan.files}
    repeated = _repeated(plan, adapter_folder)
    total = len(plan.jobs)
    done = 0
    for path, jobs in plan.files.items():
        tensors = _counted(_tensors(plan, path, adapter_folder, repeated), done, total, progress)
        write_safetensors(folder / names[path], [job.entry for job in jobs.values()], tensors)
        done += len(jobs)
    write_index(folder, {names[path]: [job.entry for job in jobs.values()] for path, jobs in plan.files.items()})


def _counted(tensors: Iterator[Tensor], done: int, total: int, progress: Progress) -> Iterator[Tensor]:
    for number, tensor in enumerate(tensors, start=done + 1):
        yield tensor
        progress(number, total)


def _tensors(plan: MergePlan, path: Path, adapter_folder: Path, repeated: Mapping[str, str]) -> Iterator[Tensor]:
    fused, parts = None, {}
    with safe_open(path, framework="pt") as file, safe_open(weights_file(adapter_folder), framework="pt") as stored:
        for job in plan.files[path].values():
            if not job.source:  # of a module that the base lacks
                yield _brought(job)
                continue
            if job.fused is not None:
                if job.fused is not fused:  # they stand together
                    fused, parts = job.fused, _merged_parts(plan, job.fused)
                yield parts.pop(job.source).to(job.entry.dtype)
                continue
            tensor = file.get_tensor(job.source)
            if job.source in repeated:
                check_repeated(repeated[job.source], stored.get_tensor(repeated[job.source]), tensor)
            yield _merged(job, tensor)


def _merged_parts(plan: MergePlan, fused: Fused) -> dict[str, Tensor]:
    """The tensors of the files that make some parameters together, with these merged."""
    made = plan.combined(fused)
    return fused.split({name: _merged(plan.parameters[name], made.pop(name)) for name in list(made)})


def _brought(job: Job) -> Tensor:
    replacement = None if job.host is None else job.host.replacement(ADAPTER)
    assert replacement is not None  # for the type checker: `plan_merge` places none but these
    return replacement.tensors()[job.key].detach().to(job.entry.dtype)


@torch.no_grad()
def _merged(job: Job, tensor: Tensor) -> Tensor:
    dtype = job.entry.dtype
    tensor = tensor.to(dtype) if job.rounding is None else job.rounding(tensor, job.is_conv1d)
    if job.host is None:
        return tensor.to(dtype)
    adapter, replacement = job.host.adapter(ADAPTER), job.host.replacement(ADAPTER)
    if replacement is not None and job.key in replacement.names:
        tensor = replacement.tensors()[job.key].to(dtype)
    is_adapted = adapter is not None and job.key in adapter.changes
    if adapter is None or not is_adapted:
        return tensor.to(dtype)
    return merged_weight(tensor, [adapter.part(job.key)], dtype)


def _repeated(plan: MergePlan, adapter_folder: Path) -> dict[str, str]:
    """Tensors of the base of which the adapter's file has a copy (peft stores targeted embeddings): base -> copy."""
    copies = repeated_weights(read_shapes(adapter_folder)).items()
    found = {plan.find(parameter): key for key, parameter in copies if key.endswith(".base_layer.weight")}
    return {source: key for source, key in found.items() if source is not None}


def _write_card(folder: Path, licence: str, rounding: BaseRounding) -> None:
    head = f"---\nlicense: {licence}\n---\n\n" if licence else ""
    (folder / "README.md").write_text(head + CARD + _about_base(rounding), encoding="utf-8")


def _about_base(rounding: BaseRounding) -> str:
    """What a reader should know when the base was quantised in training: in which precision it was merged."""
    names = {NONE: "their own precision"}
    trained, used = (names.get(kind, kind) for kind in (rounding.trained, rounding.used))
    if rounding.trained == rounding.used:
        return (
            "" if rounding.used == NONE else f"Its layers have the values of the {used} base that it was trained on.\n"
        )
    percent = f"{rounding.relative_difference:.2%}"
    logger.warning("Trained on a base in %s, merged into %s: the weights are %s apart", trained, used, percent)
    return (
        f"The adapter was trained on weights in {trained} and merged into those in {used}, which are {percent} apart "
        "(relative, Frobenius norm).\n"
    )
