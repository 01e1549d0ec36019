"""The self-test of the System tab: a job that only counts, to see that jobs start, save, pause and resume here.

Spec: {"steps": 20, "seconds_per_step": 0.1, "save_every": 5}. It loads no model and needs no torch.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from studio.context import CANCEL, RUN, STOP, JobContext, Leave
from studio.files import write_atomically
from studio.kinds.kind import Outcome, job_kind


@job_kind("selftest")
def run(context: JobContext) -> Outcome:
    """Count to `steps`, saving the count as a training run saves its checkpoints."""
    spec = context.job.spec
    steps, pause_s, save_every = spec.get("steps", 20), spec.get("seconds_per_step", 0.1), spec.get("save_every", 5)
    file = context.folder / "count.json"
    step = _count(file)
    context.say("Counting", step=step, total_steps=steps)
    while step < steps:
        time.sleep(pause_s)
        step += 1
        context.record(step, {"loss": 1.0 / step}, loss=1.0 / step)
        wish = context.request()
        if wish == CANCEL:
            raise Leave(wish)
        if wish != RUN or step % save_every == 0 or step == steps:
            context.flush()
            write_atomically(file, json.dumps({"step": step}))
            context.saved(step)
        if wish == STOP:
            break
        if wish != RUN:
            raise Leave(wish)
    return Outcome({"step": step})


def _count(file: Path) -> int:
    return int(json.loads(file.read_text(encoding="utf-8"))["step"]) if file.exists() else 0
