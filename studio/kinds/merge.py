"""Merging: base and adapter become one plain model folder, which is then compared with base + adapter.

Spec: {"adapter_id": "...", "name": "", "dtype": "base", "base_precision": "trained"}. Result: {"model_id": "...",
"verification": {...}}. An adapter trained on a quantised base is merged into that base's values unless asked otherwise.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import AdapterError
from core.models import inspect_model
from studio.artifacts import model_row
from studio.context import JobContext
from studio.files import move_folder
from studio.kinds.kind import Outcome, job_kind
from studio.tables import AdapterRow, ModelRow

if TYPE_CHECKING:
    from core.verify import MergeCheck

# Largest logit difference that is not explained by rounding the merged weights once; float32 has nothing to round.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}


@job_kind("merge")
def run(context: JobContext) -> Outcome:
    """Merge shard by shard, verify, and only then move the folder to its place."""
    adapter = context.library.adapter(context.job.spec["adapter_id"])
    base = context.library.model(adapter.model_id)
    build = _merge(context, base, adapter)
    check = _verify(context, base, adapter, build)
    row = _file(context, base, adapter, build, check)
    return Outcome({"model_id": row.id, "verification": row.verified}, (row,))


def _merge(context: JobContext, base: ModelRow, adapter: AdapterRow) -> Path:
    from core.merge import merge_to_folder

    build = context.scratch / "model"
    if build.exists():  # of an attempt that died
        context.workspace.discard(build)
    context.say(f"Merging {adapter.name} into {base.name}")
    folders = context.library.model_folder(base), context.library.adapter_folder(adapter)
    dtype = str(context.job.spec.get("dtype") or "base")
    precision = _base_precision(context)
    return merge_to_folder(*folders, build, progress=context.advance, dtype=dtype, base_precision=precision)


def _base_precision(context: JobContext) -> str:
    return str(context.job.spec.get("base_precision") or "trained")


def _verify(context: JobContext, base: ModelRow, adapter: AdapterRow, build: Path) -> MergeCheck:
    from core.models import best_device
    from core.verify import verify_merge

    context.say("Comparing the merged model with base and adapter")
    folders = context.library.model_folder(base), context.library.adapter_folder(adapter), build
    precision = _base_precision(context)
    check = context.wait_for(lambda: verify_merge(*folders, device=best_device(), base_precision=precision))
    if not check.unrounded_difference <= TOLERANCE.get(check.dtype, 0.0):  # NaN fails too
        context.workspace.discard(build)
        raise AdapterError(
            f"The merged model does not answer like base and adapter: logits are {check.unrounded_difference:.3g} off.",
            "It was not kept. Use the adapter with its base, and report this: it should not happen.",
        )
    return check


def _file(context: JobContext, base: ModelRow, adapter: AdapterRow, build: Path, check: MergeCheck) -> ModelRow:
    info = inspect_model(build)
    target = context.workspace.model_folder(context.job.id)
    context.workspace.discard(target)  # of an attempt that died between here and its last line
    move_folder(build, target)
    return model_row(
        info,
        id=context.job.id,
        name=str(context.job.spec.get("name") or f"{adapter.name} merged"),
        kind="merged",
        source=f"{base.name} + {adapter.name}",
        job_id=context.job.id,
        base_id=base.id,
        verified={**dataclasses.asdict(check), "adapter_id": adapter.id, "adapter_sha256": adapter.sha256},
    )
