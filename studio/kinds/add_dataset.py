"""Adding a dataset of the hub: its rows are fetched into a file, which is then read and filed as any upload.

Spec: {"hub_id": "owner/name", "subset": "", "split": "train", "name": "", "recipe": {...}}.
Result: {"dataset_id": "..."}.
"""

from __future__ import annotations

from core.data.recipe import Recipe
from studio.context import JobContext
from studio.kinds.kind import Outcome, job_kind
from studio.shelf import DatasetShelf


@job_kind("add_dataset", needs_device=False, needs_network=True)
def run(context: JobContext) -> Outcome:
    """Fetch, read, file. The same rows again are the dataset that is there already."""
    from core.data.hub_rows import fetch_rows

    spec = context.job.spec
    hub_id = str(spec["hub_id"])
    path = context.scratch / f"{hub_id.rpartition('/')[2]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    context.say(f"Downloading {hub_id}")
    part = {"subset": str(spec.get("subset") or ""), "split": str(spec.get("split") or "train")}
    context.wait_for(
        lambda: fetch_rows(hub_id, path, **part, progress=lambda rows: context.say(f"{rows:,} rows are here"))
    )
    context.say("Reading the rows")
    shelf = DatasetShelf(context.workspace, context.library)
    view = shelf.add([path], str(spec.get("name") or ""), Recipe(**(spec.get("recipe") or {})).skipping_errors())
    return Outcome({"dataset_id": view.id})
