"""The main job without a browser: set up, train on sample tickets, compare before and after, merge, verify.

Everything runs as background jobs, as it would from the page. What is already done, with the same model, the same
dataset and the same settings, is not done again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config import AdapterConfig, OptimConfig, TrainConfig, to_dict
from core.errors import StudioError
from studio.commands.following import follow
from studio.commands.terminal import duration, facts, say, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from studio.service import Studio
    from studio.views import JobView, ModelView

SAMPLES = Path(__file__).resolve().parents[1] / "assets" / "datasets"
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")
TRAINING, HELD_OUT = "support_tickets", "support_tickets_heldout"
FIELDS = ("product", "urgency")
CONFIG = TrainConfig(
    adapter=AdapterConfig(r=16, lora_alpha=16.0),
    optim=OptimConfig(learning_rate=2e-3),
    epochs=0.7,
    batch_size=4,  # small batches: most steps, and so the most learned, in the few minutes a demo may take
    eval_every=20,
)


@dataclass(frozen=True)
class Setup:
    """What a fresh workspace starts with."""

    model: ModelView
    datasets: Mapping[str, str]  # name -> id
    added: tuple[str, ...]  # what was missing


@dataclass(frozen=True)
class DemoReport:
    """What the demo found, for people and as JSON."""

    model: str
    adapter_id: str
    rows: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    merged_folder: Path
    verification: Mapping[str, Any]
    seconds: float
    reused: tuple[str, ...]

    def shown(self) -> RenderableType:
        """A table before against after, and how to open the merged model."""
        from rich.console import Group

        title = f"{self.rows} held-out rows"
        figures = table((title, "before", "after"), [(name, _cell(b), _cell(a)) for name, b, a in self._lines()])
        where: dict[str, Any] = {"merged model": self.merged_folder, **self.verification}
        where |= {"time": duration(self.seconds), "reused": ", ".join(self.reused)}
        return Group(figures, "", facts(where), "", f"Open it with transformers:\n{_opening(self.merged_folder)}")

    def _lines(self) -> list[tuple[str, Any, Any]]:
        names = {
            "loss": "loss (nats per token)",
            "valid_json": "valid JSON with all four keys",
            "named_fields": f"right {' and '.join(FIELDS)}",
            "exact_match": "exactly the expected ticket",
        }
        return [(label, self.before.get(key), self.after.get(key)) for key, label in names.items()]


def set_up(studio: Studio) -> Setup:
    """Add the starter model and the sample datasets where they are missing."""
    from studio.starter import NAME

    added: list[str] = []
    model = next((model for model in studio.models() if model.name == NAME), None)
    if model is None:
        job = follow(studio, studio.add_model("starter").id)
        model = studio.model(str(job.result["model_id"]))
        added.append(model.name)
    known = {dataset.name: dataset.id for dataset in reversed(studio.datasets())}
    for path in _samples():
        if path.stem not in known:
            known[path.stem] = studio.add_dataset(path).id
            added.append(path.stem)
    return Setup(model, known, tuple(added))


def run_demo(studio: Studio) -> DemoReport:
    """Do the whole main job, or as much of it as is not done yet."""
    started = time.monotonic()
    ready = set_up(studio)
    if TRAINING not in ready.datasets:
        raise StudioError("The sample datasets are not installed.", "Run the demo from a clone of the repository.")
    held_out = studio.add_dataset(SAMPLES / f"{HELD_OUT}.jsonl").id  # the same file is filed only once
    work = _Work(studio)
    training = work.done("train", model_id=ready.model.id, dataset_id=ready.datasets[TRAINING], train=to_dict(CONFIG))
    adapter_id = str(training.result["adapter_id"])
    scores = work.done(
        "evaluate",
        model_id=ready.model.id,
        dataset_id=held_out,
        adapter_ids=[adapter_id],
        fields=list(FIELDS),
    ).result
    merging = work.done("merge", adapter_id=adapter_id, name=f"{ready.model.name} tickets", dtype="float32").result
    return DemoReport(
        model=ready.model.name,
        adapter_id=adapter_id,
        rows=int(scores["rows"]),
        before=scores["scores"]["base"],
        after=scores["scores"][adapter_id],
        merged_folder=studio.export_path("model", str(merging["model_id"])),
        verification=merging.get("verification") or {},
        seconds=time.monotonic() - started,
        reused=tuple(work.reused),
    )


class _Work:
    """Jobs of the demo: each waited for, or taken from an earlier run with the very same specification."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.reused: list[str] = []

    def done(self, kind: str, **spec: Any) -> JobView:
        """The finished job of this kind and specification."""
        known = next((job for job in self.studio.jobs(limit=10_000) if self._is_usable(job, kind, spec)), None)
        if known is not None and known.state == "succeeded":
            say(f"{kind}: done before ({known.id}), nothing has changed since.")
            self.reused.append(kind)
            return known
        say(f"{kind}: running")
        return follow(self.studio, known.id if known else self._start(kind, spec))

    def _start(self, kind: str, spec: Mapping[str, Any]) -> str:
        if kind == "train":
            return self.studio.train(spec["model_id"], spec["dataset_id"], CONFIG, name="Support tickets").id
        return (self.studio.merge if kind == "merge" else self.studio.evaluate)(**spec).id

    def _is_usable(self, job: JobView, kind: str, spec: Mapping[str, Any]) -> bool:
        """True for a job with this specification that runs, waits, or made something that is still there."""
        if job.kind != kind or dict(job.spec) != dict(spec) or job.state not in ("queued", "running", "succeeded"):
            return False
        try:
            if "adapter_id" in job.result:
                self.studio.adapter(str(job.result["adapter_id"]))
            if "model_id" in job.result:
                self.studio.model(str(job.result["model_id"]))
        except StudioError:
            return False
        return True


def _samples() -> list[Path]:
    """The sample files to train on; what is held out is not offered for training."""
    if not SAMPLES.is_dir():
        return []
    found = [path for path in sorted(SAMPLES.iterdir()) if path.suffix in SUFFIXES and "heldout" not in path.stem]
    return sorted(found, key=lambda path: path.stem == TRAINING)  # added last, so that the page offers it first


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"


def _opening(folder: Path) -> str:
    return (
        "  from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f'  model = AutoModelForCausalLM.from_pretrained("{folder}")\n'
        f'  tokenizer = AutoTokenizer.from_pretrained("{folder}")'
    )
