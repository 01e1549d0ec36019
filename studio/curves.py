"""Fewer points for the same picture: a curve thinned so that no spike and no gap disappears."""

from __future__ import annotations

import math
from collections.abc import Sequence

from studio.views import MetricPoint


def thin(points: Sequence[MetricPoint], max_points: int) -> list[MetricPoint]:
    """At most about `max_points` points: of every bucket the lowest, the highest and the last, in order of steps.

    A mean would hide spikes; a NaN is always kept, so that it shows as a gap.
    """
    if len(points) <= max_points:
        return list(points)
    buckets = max(1, max_points // 3)
    size = math.ceil(len(points) / buckets)
    kept: list[MetricPoint] = []
    for start in range(0, len(points), size):
        kept.extend(_landmarks(points[start : start + size]))
    return kept


def _landmarks(bucket: Sequence[MetricPoint]) -> list[MetricPoint]:
    finite = [point for point in bucket if math.isfinite(point.value)]
    chosen = {bucket[-1].step: bucket[-1]}
    if finite:
        for point in (min(finite, key=lambda p: p.value), max(finite, key=lambda p: p.value)):
            chosen[point.step] = point
    broken = next((point for point in bucket if not math.isfinite(point.value)), None)
    if broken is not None:
        chosen[broken.step] = broken
    return [chosen[step] for step in sorted(chosen)]
