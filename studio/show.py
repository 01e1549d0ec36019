"""Rows of the database as the views that the page and the CLI show."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import ConfigError
from core.methods import Method, methods
from studio.tables import AdapterRow, DatasetRow, JobRow, ModelRow
from studio.views import AdapterView, DatasetView, JobView, ModelView, ProblemView, ScoreView, TargetView

SHOWN_PROBLEMS = 200
_HIDDEN_RESULT = frozenset({"folder"})  # paths of this machine are nobody's business in a browser


def problem_view(problem: Mapping[str, Any]) -> ProblemView:
    """A problem, from JSON."""
    return ProblemView(**problem)


def dataset_view(
    row: DatasetRow, counts: Mapping[str, int] | None = None, files: Sequence[str] = (), records_sha256: str = ""
) -> DatasetView:
    """A dataset of the library; without `counts`, the problems that are shown are counted."""
    return DatasetView(
        id=row.id,
        name=row.name,
        file_name=row.file_name,
        format=row.format,
        rule=row.rule,
        share=row.share,
        rows=row.rows,
        bad_rows=row.bad_rows,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
        problems=tuple(map(problem_view, row.problems[:SHOWN_PROBLEMS])),
        counts=Counter(problem["kind"] for problem in row.problems) if counts is None else counts,
        files=tuple(files) or (row.file_name,),
        records_sha256=records_sha256,
    )


def target_view(target: Mapping[str, Any]) -> TargetView:
    """A kind of layer, from the JSON of its model's row: name, group and every shape."""
    shapes = [(int(d_in), int(d_out)) for d_in, d_out in target["shapes"]]
    return TargetView(
        name=target["name"],
        group=target["group"],
        shapes=tuple(dict.fromkeys(shapes)),
        count=len(shapes),
        parameters=sum(d_in * d_out for d_in, d_out in shapes),
        selected_by_default=target["group"] not in ("embedding", "output"),
    )


def model_view(row: ModelRow) -> ModelView:
    """A base or merged model of the library."""
    return ModelView(
        id=row.id,
        name=row.name,
        kind=row.kind,
        source=row.source,
        architecture=row.architecture,
        parameters=row.parameters,
        dtype=row.dtype,
        context_length=row.context_length,
        has_chat_template=row.has_chat_template,
        licence=row.licence,
        size_bytes=row.size_bytes,
        targets=tuple(target_view(target) for target in row.targets),
        created_at=row.created_at,
        job_id=row.job_id,
        base_id=row.base_id,
        verified=row.verified,
    )


def adapter_view(row: AdapterRow) -> AdapterView:
    """An adapter of the library; rank and alpha only where its method has them."""
    method = _method(row.method)
    return AdapterView(
        id=row.id,
        name=row.name,
        model_id=row.model_id,
        job_id=row.job_id,
        method=row.method,
        method_title=method.title if method else row.method,
        unmergeable=method.why_unmergeable() if method else "",
        r=row.r if method is None or "r" in method.uses else None,
        lora_alpha=row.lora_alpha if method is None or "lora_alpha" in method.uses else None,
        parameters=row.parameters,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        step=row.step,
        eval_loss=row.eval_loss,
        created_at=row.created_at,
    )


def _method(name: str) -> type[Method] | None:
    """The method of a row; None for one that a newer version knew."""
    try:
        return methods.get(name)
    except ConfigError:
        return None


def score_view(entry: Mapping[str, Any]) -> ScoreView:
    """One entry of a run's score sheet."""
    return ScoreView(
        step=int(entry["step"]),
        values={str(name): float(value) for name, value in entry["values"].items()},
        labels=tuple(entry.get("labels", ())),
        confusion=tuple(tuple(row) for row in entry.get("confusion", ())),
        answers=tuple((one["prompt"], one["expected"], one["given"]) for one in entry.get("answers", ())),
    )


def job_view(row: JobRow) -> JobView:
    """A job of the queue or of the past."""
    return JobView(
        id=row.id,
        kind=row.kind,
        name=row.name,
        state=row.state,
        desired=row.desired,
        step=row.step,
        total_steps=row.total_steps,
        message=row.message,
        loss=row.loss,
        eval_loss=row.eval_loss,
        best_eval_loss=row.best_eval_loss,
        best_step=row.best_step,
        tokens_per_second=row.tokens_per_second,
        eta_s=row.eta_s,
        device=row.device,
        attempt=row.attempt,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        error_what=row.error_what,
        error_fix=row.error_fix,
        spec=row.spec,
        result={key: value for key, value in row.result.items() if key not in _HIDDEN_RESULT},
        after_id=row.after_id,
        failure=row.failure,
        progress_at=row.progress_at,
        idle_s=max(0.0, time.time() - row.progress_at) if row.state == "running" and row.progress_at else None,
    )
