"""What the service hands to the page and the CLI: plain, frozen facts, no rows, no tensors, no paths from a browser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """One line of a plan's checklist; `level` is ok, warning or error, and an error blocks the start."""

    level: str
    text: str
    fix: str = ""


@dataclass(frozen=True)
class TargetView:
    """A kind of layer an adapter can go on: `q_proj`, 30 of them, each 576 -> 576."""

    name: str
    group: str  # attention, mlp, embedding, output or other
    shapes: tuple[tuple[int, int], ...]  # distinct (in, out), input first
    count: int
    parameters: int  # weights in all of them together
    selected_by_default: bool


@dataclass(frozen=True)
class ModelView:
    """A base or merged model of the library."""

    id: str
    name: str
    kind: str  # base or merged
    source: str
    architecture: str
    parameters: int
    dtype: str
    context_length: int
    has_chat_template: bool
    licence: str
    size_bytes: int
    targets: tuple[TargetView, ...]
    created_at: float
    job_id: str | None = None  # the job that made it
    base_id: str | None = None  # for a merged model, the base under it
    verified: Mapping[str, Any] = field(default_factory=dict)  # for a merged model, the figures of its verification


@dataclass(frozen=True)
class ProblemView:
    """Something wrong with one row of a dataset; `row` counts from 1 as an editor shows it."""

    row: int
    kind: str
    level: str  # error: the row is left out; warning: it is kept
    detail: str
    excerpt: str
    file: str = ""  # its name, where a dataset has several


@dataclass(frozen=True)
class DatasetView:
    """An immutable version of an uploaded file."""

    id: str
    name: str
    file_name: str
    format: str
    rule: str  # in words: why this format
    share: float  # of all rows that match it, 0 to 1
    rows: int  # usable rows
    bad_rows: int
    sha256: str
    size_bytes: int
    created_at: float
    problems: tuple[ProblemView, ...] = ()  # the first 200
    counts: Mapping[str, int] = field(default_factory=dict)  # kind of problem -> rows, all of them
    files: tuple[str, ...] = ()
    records_sha256: str = ""  # of the rows as they are trained on: the version


@dataclass(frozen=True)
class PreviewRow:
    """One row as the model will see it: its turns, role and text."""

    row: int
    turns: tuple[tuple[str, str], ...]
    file: str = ""  # its name, where a dataset has several


@dataclass(frozen=True)
class TokenRow:
    """One text of a row as tokens: their texts in order, each "prompt", "trained" or "cut"."""

    row: int
    pieces: tuple[tuple[str, str], ...]
    tokens: int
    trained: int  # terms of the loss within the maximum length
    error: str = ""  # why the row cannot be trained on with this model
    fix: str = ""
    answer: str = ""  # of a preference pair, which has two texts: chosen or rejected


@dataclass(frozen=True)
class LengthsView:
    """How long the rows of a dataset are in tokens of one model, and what of them is trained at a maximum length."""

    rows: int  # measured
    of: int  # rows of the dataset
    tokens: int  # of one epoch of the measured rows, after the cut
    trained: int  # terms of the loss in it
    max_length: int
    cut_rows: int
    lost_rows: int  # nothing of them is left to train
    percentiles: Mapping[str, int]  # "50", "95", "99", "100" -> tokens
    edges: tuple[int, ...]  # of the histogram's bins
    counts: tuple[int, ...]
    refused: int  # rows that cannot be trained on with this model
    refusal: str
    pairs: bool = False  # of preference pairs: each row counts twice, with either answer


@dataclass(frozen=True)
class AdapterView:
    """A trained or imported adapter."""

    id: str
    name: str
    model_id: str
    job_id: str | None
    method: str
    method_title: str
    unmergeable: str  # why it cannot become one model with its base; empty when it can
    r: int | None  # None for a method without a rank, and so for alpha
    lora_alpha: float | None
    parameters: int
    size_bytes: int
    sha256: str
    step: int
    eval_loss: float | None
    created_at: float


@dataclass(frozen=True)
class LayerRankView:
    """How much of its rank one layer of an adapter uses."""

    path: str
    rank: int
    norm: float  # Frobenius norm of its change
    effective_rank: float
    rank_90: int  # the lowest rank that holds 90 % of its change, by squared singular values
    rank_95: int
    rank_99: int


@dataclass(frozen=True)
class RankView:
    """How much of its rank an adapter uses; the ranks that hold a share of the whole are the same for all layers."""

    adapter_id: str
    rank: int  # the highest of a layer
    rank_90: int
    rank_95: int
    rank_99: int
    changes_nothing: bool
    layers: tuple[LayerRankView, ...]
    rule_of_thumb: int = 0  # for a model as wide as this one, before there is anything to measure; 0 when unknown


TOKENISING = "Tokenising "  # so begins what a job says while it counts rows, before its first step


@dataclass(frozen=True)
class JobView:
    """A job as the jobs table and its detail page show it."""

    id: str
    kind: str  # train, merge or add_model
    name: str
    state: str  # queued, running, paused, succeeded, failed or cancelled
    desired: str  # run, pause, stop or cancel: what the user last asked for
    step: int
    total_steps: int
    message: str  # what it is doing now, in words
    loss: float | None
    eval_loss: float | None
    best_eval_loss: float | None
    best_step: int | None
    tokens_per_second: float | None
    eta_s: float | None
    device: str
    attempt: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    error_what: str
    error_fix: str
    spec: Mapping[str, Any]
    result: Mapping[str, Any]  # adapter_id, model_id or verification figures, by kind
    after_id: str | None = None  # the job whose success it waits for
    failure: Mapping[str, Any] = field(default_factory=dict)  # of a failed one: its kind, and the line that shows it
    progress_at: float | None = None  # when its work last went on
    idle_s: float | None = None  # of a running one: seconds since its work last went on

    @property
    def is_over(self) -> bool:
        """True once the job can never run again by itself."""
        return self.state in ("succeeded", "failed", "cancelled")

    @property
    def counts_rows(self) -> bool:
        """True while `step` and `total_steps` are rows that become tokens."""
        return self.message.startswith(TOKENISING)

    @property
    def progress(self) -> float:
        """Share of the work that is done, 0 to 1; a training that stopped early has not done all of it."""
        if self.state == "succeeded" and not (self.kind == "train" and self.total_steps):
            return 1.0
        return self.step / self.total_steps if self.total_steps else 0.0


@dataclass(frozen=True)
class QueueView:
    """The queue as a whole."""

    order: tuple[str, ...]  # ids of the waiting jobs, the next one first
    is_paused: bool
    jobs_per_device: int


@dataclass(frozen=True)
class RemedyView:
    """Something to do about a failed job: settings to change, or none to try it again as it is."""

    name: str
    text: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class MetricPoint:
    """One value of one curve."""

    step: int
    value: float


@dataclass(frozen=True)
class ScoreView:
    """What a run's held-out rows gave at one step."""

    step: int  # 0: before the first
    values: Mapping[str, float]  # accuracy, macro_f1, exact_match, ... by name; which there are depends on the task
    labels: tuple[str, ...] = ()  # of the confusion matrix
    confusion: tuple[tuple[int, ...], ...] = ()  # rows: the true label; columns: the one that was given
    answers: tuple[tuple[str, str, str], ...] = ()  # prompt, expected, given


@dataclass(frozen=True)
class CheckpointView:
    """A saved state of a running or finished job."""

    step: int
    eval_loss: float | None
    size_bytes: int
    is_best: bool
    is_last: bool


@dataclass(frozen=True)
class PlanView:
    """What a run will take, before it starts."""

    checks: tuple[Check, ...]
    rows: int
    validation_rows: int
    steps: int
    tokens_per_epoch: int
    trainable_parameters: int
    total_parameters: int
    seconds: float | None  # None until this machine has a measured speed
    memory: Mapping[str, int]  # part (weights, adapter, optimizer, activations, logits) -> bytes
    memory_total_bytes: int
    memory_free_bytes: int
    disk_bytes: int
    device: str
    trainable_by_target: Mapping[str, int] = field(default_factory=dict)  # kind of layer -> parameters that train on it
    micro_batch_size: int = 0  # rows
    max_length: int = 0  # tokens
    learning_rate: float = 0.0  # the one that is picked where the settings leave it open

    @property
    def can_start(self) -> bool:
        """True when no check is an error."""
        return all(check.level != "error" for check in self.checks)


@dataclass(frozen=True)
class DeviceView:
    """A GPU, or the CPU with the host's memory."""

    name: str
    kind: str  # cuda, mps or cpu
    memory_total_bytes: int
    memory_used_bytes: int
    busy_share: float | None


@dataclass(frozen=True)
class SystemView:
    """The state of this machine and of the workspace."""

    devices: tuple[DeviceView, ...]
    disk_free_bytes: int
    disk_used: Mapping[str, int]  # folder of the workspace -> bytes
    versions: Mapping[str, str]
    workspace: str
    scheduler_running: bool
    offline: bool
    running: tuple[JobView, ...] = ()
    queued: int = 0


@dataclass(frozen=True)
class ChatPane:
    """What one pane of the compare tab answers with: the bare base, or an adapter."""

    adapter_id: str | None  # None is the base
    label: str


@dataclass(frozen=True)
class ChatChunk:
    """The text of every pane so far; `sha256` names the adapter each pane really used ("" for the base)."""

    texts: tuple[str, ...]
    sha256: tuple[str, ...]
    done: bool
    message: str = ""  # such as "Loading the model ..."
